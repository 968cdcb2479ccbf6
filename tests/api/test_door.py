"""Around every request: ids, limits, doubled paths, errors without stack traces."""

import asyncio
import re

import httpx

from api.door import MAX_HEADER_BYTES
from tests.api.mill import chat_body, mill
from tests.api.server import new_client, serving
from tests.api.test_health import client_of, nobody_there
from tests.conftest import eventually
from tests.worker.endpoint import chat, never

TOGETHER = {"User-Agent": "Together/JS 0.52.0"}


async def test_every_answer_has_an_id(sqlite_db):
    async with serving(sqlite_db) as server:
        one, two = [await server.client.get("/nowhere") for _ in "12"]
        assert one.headers["x-request-id"].startswith("req_")
        assert one.headers["x-request-id"] != two.headers["x-request-id"]
        mine = await server.client.get("/v1/jobs", headers={"X-Request-Id": "my-1"})
        assert mine.headers["x-request-id"] == "my-1"
        odd = await server.client.get("/v1/jobs", headers={"X-Request-Id": "with blanks, and more"})
        assert odd.headers["x-request-id"].startswith("req_")


async def test_unknown_paths_and_methods_are_told_in_the_callers_words(sqlite_db):
    async with serving(sqlite_db) as server:
        assert (await server.client.get("/v1/nowhere")).json()["error"]["code"] == "unknown_path"
        answer = await server.client.put("/v1/jobs", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        answer = await server.client.put("/v1/batches", json={}, headers=TOGETHER)
        assert (answer.status_code, type(answer.json()["error"])) == (405, str)


async def test_a_doubled_base_is_one(sqlite_db):
    async with serving(sqlite_db) as server:
        for path in ("/v1/v1/jobs", "/v1/v1/v1/jobs", "/v1//v1/jobs"):
            assert (await server.client.get(path)).status_code == 200


async def test_large_headers_are_refused(sqlite_db):
    async with serving(sqlite_db) as server:
        answer = await server.client.get("/v1/jobs", headers={"X-Large": "x" * MAX_HEADER_BYTES})
        assert answer.status_code in (400, 431)


async def test_a_large_body_is_refused_before_it_is_read(sqlite_db):
    async with serving(sqlite_db, max_request_bytes=1000) as server:
        for path in ("/v1/jobs", "/v1/chat/completions"):
            answer = await server.client.post(path, json=chat_body("x" * 2000))
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")

        async def chunks():
            for _ in range(10):
                yield b" " * 500

        headers = {"Content-Type": "application/json"}
        answer = await server.client.post("/v1/jobs", content=chunks(), headers=headers)
        assert answer.status_code == 413


async def test_more_open_requests_than_allowed_are_told_to_come_again(sqlite_db):
    async with mill(sqlite_db, never, max_open_requests=2) as made:
        limits = httpx.Limits(max_connections=None)
        async with new_client(base_url=made.serving.url, limits=limits) as client:
            held = [asyncio.create_task(made.chat(client=client)) for _ in range(2)]
            await eventually(lambda: len(made.upstream.calls) == 2)
            answer = await made.client.get("/v1/jobs")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert (await made.client.get("/healthz")).status_code == 200
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)


async def test_a_fault_of_ours_is_500_with_its_id_and_without_a_trace(sqlite_db, monkeypatch, caplog):
    async def broken(*_args, **_kwargs):
        raise KeyError("secret inside")

    monkeypatch.setattr("promptmill.store.jobs.listed", broken)
    async with serving(sqlite_db) as server:
        answer = await server.client.get("/v1/jobs")
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] in caplog.text


async def test_a_database_that_is_away_is_503():
    async with client_of(f"postgresql://promptmill:secret@127.0.0.1:{nobody_there()}/promptmill") as client:
        answer = await client.get("/v1/jobs")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "secret" not in answer.text


async def test_metrics_count_what_goes_on(db):
    async with mill(db, lambda _: chat(prompt_tokens=3, completion_tokens=5)) as made:
        assert (await made.chat()).status_code == 200

        async def counted():
            text = (await made.client.get("/metrics")).text
            return text if 'promptmill_jobs_finished{state="succeeded"} 1.0' in text else None

        text = await eventually(counted)
    for line in (
        "promptmill_held_requests 0.0",
        "promptmill_workers 1.0",
        'promptmill_http_requests_total{method="POST",path="/v1/chat/completions",status="200"} 1.0',
    ):
        assert line in text, line
    assert re.search(r'promptmill_attempts_total{.*outcome="succeeded".*} 1\.0', text)
    assert re.search(r'promptmill_tokens_total{.*type="completion".*} 5\.0', text)
    assert "promptmill_answer_seconds_bucket" in text


async def test_what_a_caller_wrote_is_no_label(sqlite_db):
    """It may be a secret, and there is no end to what can be written."""
    async with serving(sqlite_db) as server:
        await server.client.put("/v1/files/incoming/SECRET", headers={"X-Large": "x" * (MAX_HEADER_BYTES - 300)})
        await server.client.get("/v1/SECRET")
        text = (await server.client.get("/metrics")).text
        assert "SECRET" not in text
        assert 'path="unknown"' in text
