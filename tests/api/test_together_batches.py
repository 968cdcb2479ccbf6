"""Batches as Together's clients use them."""

from datetime import UTC, datetime

import pytest

from promptmill.engine import Database
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, TOGETHER, chat, line, rejected, uploaded, work
from tests.conftest import eventually

ENDPOINT = "/v1/chat/completions"


async def created(server: Serving, file_id: str, *, headers: dict[str, str] = TOGETHER, **more) -> dict:
    answer = await server.client.post(
        "/v1/batches", json={"input_file_id": file_id, "endpoint": ENDPOINT, **more}, headers=headers
    )
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {"job", "warning"}
    return answer.json()["job"]


async def until(server: Serving, batch_id: str, status: str) -> dict:
    async def there():
        batch = (await server.client.get(f"/v1/batches/{batch_id}", headers=TOGETHER)).json()
        return batch if batch["status"] == status else None

    return await eventually(there)


async def test_from_validating_to_completed(db: Database):
    async with serving(db) as server:
        file_id = await uploaded(db, [line("a", url=None), line("b", url=None)], purpose="batch-api")
        job = await created(server, file_id, model_id="m", priority=3)
        assert (job["status"], job["endpoint"], job["input_file_id"]) == ("VALIDATING", ENDPOINT, file_id)
        assert job["file_size_bytes"] > 0
        assert (job["progress"], job["error"], job["completed_at"]) == (0.0, None, None)
        made, due = (datetime.fromisoformat(job[name]) for name in ("created_at", "job_deadline"))
        assert abs((datetime.now(UTC) - made).total_seconds()) < 60
        assert (due - made).total_seconds() == pytest.approx(86_400, abs=1)
        running = await until(server, job["id"], "IN_PROGRESS")
        assert running["model_id"] == "m"
        await work(db, job["id"], [chat()])
        assert (await until(server, job["id"], "IN_PROGRESS"))["progress"] == 50.0
        await work(db, job["id"], [rejected()])
        done = await until(server, job["id"], "COMPLETED")
        assert (done["progress"], done["completed_at"] is None) == (100.0, False)
        assert done["output_file_id"]
        assert done["error_file_id"]


async def test_the_sdk_reads_it(db: Database):
    together = pytest.importorskip("together")
    async with serving(db) as server, together.AsyncTogether(base_url=server.url, api_key="x") as client:
        file_id = await uploaded(db, [line("a", url=None)], purpose="batch-api")
        made = await client.batches.create(input_file_id=file_id, endpoint=ENDPOINT)
        assert made.job is not None
        assert made.job.id
        await until(server, made.job.id, "IN_PROGRESS")
        assert [each.id for each in await client.batches.list()] == [made.job.id]
        cancelled = await client.batches.cancel(made.job.id)
        assert cancelled.id == made.job.id
        assert (await until(server, made.job.id, "CANCELLED"))["progress"] == 100.0


async def test_listed_bare_and_whole(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        file_id = await uploaded(sqlite_db, [line()], purpose="batch-api")
        ids = [(await created(server, file_id))["id"] for _ in range(25)]
        listed = (await server.client.get("/v1/batches", headers=TOGETHER)).json()
        assert [batch["id"] for batch in listed] == ids[::-1]


async def test_lines_may_go_elsewhere_than_the_batch(db: Database):
    elsewhere = b'{"custom_id":"b","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'
    async with serving(db) as server:
        job = await created(server, await uploaded(db, [line("a", url=None), elsewhere], purpose="batch-api"))
        await until(server, job["id"], "IN_PROGRESS")


async def test_a_wrong_file_is_told_in_a_sentence(db: Database):
    async with serving(db) as server:
        job = await created(server, await uploaded(db, [b"{\n"], purpose="batch-api", status="error"))
        failed = await until(server, job["id"], "FAILED")
        assert failed["error"].startswith("line 1: ")


async def test_a_refusal_is_a_sentence(db: Database):
    async with serving(db) as server:
        answer = await server.client.post(
            "/v1/batches", json={"input_file_id": "file-x", "endpoint": ENDPOINT}, headers=TOGETHER
        )
        assert answer.status_code == 400
        assert isinstance(answer.json()["error"], str)


async def test_without_a_name_the_purpose_of_the_file_decides(db: Database):
    async with serving(db) as server:
        together = await uploaded(db, [line()], purpose="batch-api")
        job = await created(server, together, headers={"User-Agent": "curl/8"})
        shown = (await server.client.get(f"/v1/batches/{job['id']}", headers={"User-Agent": "curl/8"})).json()
        assert shown["status"].isupper()
        named = (await server.client.get(f"/v1/batches/{job['id']}", headers=OPENAI)).json()
        assert named["object"] == "batch"
        body = {"input_file_id": await uploaded(db, [line()]), "endpoint": ENDPOINT}
        plain = await server.client.post("/v1/batches", json=body, headers={"User-Agent": "curl/8"})
        assert (plain.status_code, plain.json()["object"]) == (200, "batch")
