"""Jobs submitted by themselves: taken in, looked at, listed, cancelled, tried again."""

import asyncio
import time

import pytest
import sqlalchemy as sa

from promptmill.store import batches, jobs
from promptmill.store.tenants import create_key
from promptmill.tables import attempts
from promptmill.tables import batches as batch_rows
from tests.api.mill import chat_body, mill
from tests.api.server import serving
from tests.conftest import eventually
from tests.worker.endpoint import chat, never, refusal, text_of

RESULT_WAIT = {"wait": 20}


async def submit(client, **body):
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


async def shown(client, job_id, **params):
    answer = await client.get(f"/v1/jobs/{job_id}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_job_is_taken_worked_and_shown(db):
    async with mill(db, lambda call: chat(text_of(call).upper(), prompt_tokens=4, completion_tokens=6)) as made:
        answer = await made.client.post(
            "/v1/jobs",
            json={"custom_id": "a", "body": chat_body("hi"), "metadata": {"for": "me"}, "priority": "high"},
        )
        assert answer.status_code == 202
        job_id = answer.json()["id"]
        assert answer.headers["location"].endswith(f"/v1/jobs/{job_id}")
        job = await shown(made.client, job_id, **RESULT_WAIT)
    assert (job["object"], job["status"], job["custom_id"], job["model"]) == ("job", "succeeded", "a", "test/plain")
    assert (job["metadata"], job["priority"]) == ({"for": "me"}, 1000)
    assert job["usage"]["total_tokens"] == 10
    assert job["result"]["response"]["body"]["choices"][0]["message"]["content"] == "HI"
    (attempt,) = job["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["status_code"], attempt["counted"]) == (
        1, "succeeded", 200, True,
    )  # fmt: skip


async def test_a_body_alone_is_a_job(sqlite_db):
    async with mill(sqlite_db, lambda _: chat()) as made:
        job_id = await submit(made.client, **chat_body("hi"))
        assert (await shown(made.client, job_id, **RESULT_WAIT))["status"] == "succeeded"
        assert made.upstream.texts == ["hi"]


async def test_many_are_taken_together_or_not_at_all(db):
    async with mill(db, lambda call: chat(text_of(call))) as made:
        requests = [{"custom_id": f"n-{n}", "body": chat_body(str(n))} for n in range(25)]
        answer = await made.client.post("/v1/jobs", json={"requests": requests, "metadata": {"set": "1"}})
        assert answer.status_code == 202
        ids = answer.json()["ids"]
        assert len(set(ids)) == 25
        seen = [await shown(made.client, job_id, **RESULT_WAIT) for job_id in ids]
        assert [job["custom_id"] for job in seen] == [f"n-{n}" for n in range(25)]
        assert {job["status"] for job in seen} == {"succeeded"}
        assert seen[3]["metadata"] == {"set": "1"}

        requests[7] = {"body": {"model": "m"}}
        answer = await made.client.post("/v1/jobs", json={"requests": requests})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"].startswith("requests[7]")
        listed = (await made.client.get("/v1/jobs", params={"limit": 100})).json()
        assert len(listed["data"]) == 25


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"requests": []}, "requests"),
        ({"requests": [{}]}, "requests[0].body"),
        ({"body": {}, "requests": [{"body": {}}]}, "requests"),
        ({"body": chat_body(), "priority": 10**9}, "priority"),
        ({"body": chat_body(), "priority": "urgent"}, "priority"),
        ({"body": chat_body(), "not_before": "tomorrow"}, "not_before"),
        ({"body": chat_body(), "not_before": 1e18}, "not_before"),
        ({"body": chat_body(), "deadline": 1}, "deadline"),
        ({"body": chat_body(), "metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"body": chat_body(), "metadata": {"a": "x" * 513}}, "metadata"),
        ({"body": chat_body(), "metadata": {"a": 1}}, None),
        ({"body": chat_body(), "url": "/v1/responses"}, "url"),
        ({"body": chat_body(), "custom_id": "x" * 513}, "custom_id"),
        ({"body": chat_body(stream=True)}, "stream"),
        ({"body": chat_body() | {"model": 7}}, None),
        ([1], None),
    ],
)
async def test_what_is_wrong_is_told_with_its_place(sqlite_db, body, param):
    async with serving(sqlite_db) as server:
        answer = await server.client.post("/v1/jobs", json=body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["message"]
        if param is not None:
            assert error["param"] == param


async def test_a_string_that_no_database_takes_is_refused(sqlite_db):
    async with serving(sqlite_db) as server:
        for content in (
            b'{"body": {"model": "m", "messages": []}, "metadata": {"a": "\\u0000"}}',
            b'{"body": {"model": "m", "messages": []}, "metadata": {"a": "\\ud800"}}',
            b"\xff\xfe",
            b"{" * 1000,
        ):
            answer = await server.client.post("/v1/jobs", content=content)
            assert answer.status_code == 400, content


async def test_not_before_is_waited_for(db):
    async with mill(db, lambda _: chat()) as made:
        due = time.time() + 1.0
        job_id = await submit(made.client, body=chat_body(), not_before=due)
        waiting = await shown(made.client, job_id)
        assert (waiting["status"], waiting["not_before"]) == ("waiting", due)
        job = await shown(made.client, job_id, **RESULT_WAIT)
        assert job["status"] == "succeeded"
        assert job["attempts"][0]["started_at"] >= due


async def test_a_deadline_that_passes_is_an_end(db):
    async with mill(db, never, max_in_flight=1) as made:
        await submit(made.client, body=chat_body("blocks the lane"))
        await eventually(lambda: len(made.upstream.calls) == 1)
        job_id = await submit(made.client, body=chat_body("late"), deadline=time.time() + 0.5)
        job = await shown(made.client, job_id, **RESULT_WAIT)
        assert (job["status"], job["error_code"]) == ("expired", "batch_expired")


async def test_a_job_that_was_not_sent_can_be_cancelled_and_tried_again(db):
    async with mill(db, lambda _: chat()) as made:
        job_id = await submit(made.client, body=chat_body(), not_before=time.time() + 3600)
        cancelled = await made.client.post(f"/v1/jobs/{job_id}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert (await made.client.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200  # nothing new

        again = await made.client.post(f"/v1/jobs/{job_id}/retry")
        assert again.status_code == 200, again.text
        job = await shown(made.client, job_id, **RESULT_WAIT)
        assert job["status"] == "succeeded"
        for action in ("cancel", "retry"):
            answer = await made.client.post(f"/v1/jobs/{job_id}/{action}")
            assert answer.status_code == 409


@pytest.mark.parametrize(("query", "sent"), [({}, {"abort": True}), ({"abort": "true"}, None)])
async def test_a_call_that_is_out_is_broken_off_where_that_is_asked(db, query, sent):
    async with mill(db, never) as made:
        job_id = await submit(made.client, body=chat_body())
        await eventually(lambda: len(made.upstream.calls) == 1)
        for harmless in (None, {}, {"abort": False}):
            refused = await made.client.post(f"/v1/jobs/{job_id}/cancel", json=harmless)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_cancellable")
        assert "abort" in refused.json()["error"]["message"]
        assert (await made.client.post(f"/v1/jobs/{job_id}/cancel", json={"abort": 1})).status_code == 400
        cancelled = await made.client.post(f"/v1/jobs/{job_id}/cancel", params=query, json=sent)
        assert cancelled.status_code == 200
        job = await shown(made.client, job_id, **RESULT_WAIT)
        assert (job["status"], job["error_code"]) == ("cancelled", "job_cancelled")
        assert [attempt["outcome"] for attempt in job["attempts"]] == ["job_cancelled"]


async def test_a_failed_job_tried_again_keeps_its_ledger(db):
    answers = iter([refusal("400 Bad Request", "not now"), chat("now")])
    async with mill(db, lambda _: next(answers)) as made:
        job_id = await submit(made.client, body=chat_body())
        failed = await shown(made.client, job_id, **RESULT_WAIT)
        assert (failed["status"], failed["error_code"]) == ("failed", "rejected")
        assert (await made.client.post(f"/v1/jobs/{job_id}/retry")).status_code == 200
        job = await shown(made.client, job_id, **RESULT_WAIT)
        assert job["status"] == "succeeded"
        assert [(a["number"], a["outcome"]) for a in job["attempts"]] == [(1, "rejected"), (2, "succeeded")]
        batch = await batches.by_public_id(db, job["batch_id"], tenant_id=1)
        assert (batch.succeeded, batch.failed, batch.total) == (1, 0, 1)
        async with db.read() as connection:
            assert (await connection.execute(sa.select(sa.func.count()).select_from(attempts))).scalar() == 2


async def test_the_list_is_paged_and_filtered(db):
    async with mill(db, lambda call: chat() if text_of(call) != "bad" else refusal("400 Bad Request")) as made:
        texts = ["ok", "bad", "ok", "bad", "ok"]
        ids = [await submit(made.client, body=chat_body(text)) for text in texts]
        for job_id in ids:
            await shown(made.client, job_id, **RESULT_WAIT)
        first = (await made.client.get("/v1/jobs", params={"limit": 3})).json()
        assert [job["id"] for job in first["data"]] == ids[:1:-1]
        assert first["has_more"] is True
        rest = (await made.client.get("/v1/jobs", params={"limit": 3, "after": first["last_id"]})).json()
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[1::-1], False)
        failed = (await made.client.get("/v1/jobs", params={"status": "failed"})).json()
        assert [job["id"] for job in failed["data"]] == [ids[3], ids[1]]
        for params in ({"limit": 0}, {"limit": -1}, {"limit": 10**20}, {"after": "job_nobody-1"}, {"status": "odd"}):
            answer = await made.client.get("/v1/jobs", params=params)
            assert answer.status_code == 400, params
            assert answer.json()["error"]["message"]


async def test_another_tenants_jobs_are_not_there(db):
    mine, theirs = [
        {"Authorization": f"Bearer {await create_key(db, tenant=name, name='k', is_admin=False, now=0)}"}
        for name in ("one", "two")
    ]
    async with serving(db) as server:
        made = await server.client.post("/v1/jobs", json={"body": chat_body()}, headers=mine)
        job_id = made.json()["id"]
        assert (await server.client.get(f"/v1/jobs/{job_id}", headers=mine)).status_code == 200
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
            answer = await server.client.request(method, f"/v1/jobs/{job_id}{path}", headers=theirs)
            nobody = await server.client.request(method, f"/v1/jobs/{job_id[:-1]}9{path}", headers=mine)
            assert answer.status_code == nobody.status_code == 404
        assert (await server.client.get("/v1/jobs", headers=theirs)).json()["data"] == []
        unknown = await server.client.get("/v1/jobs", params={"after": job_id}, headers=theirs)
        assert unknown.status_code == 400


async def test_an_idempotency_key_takes_one_job(db):
    async with serving(db) as server:
        key = {"Idempotency-Key": "once"}
        first, again = [await server.client.post("/v1/jobs", json={"body": chat_body()}, headers=key) for _ in "12"]
        assert first.json() == again.json()
        assert first.headers["location"] == again.headers["location"]
        other = await server.client.post("/v1/jobs", json={"body": chat_body("other")}, headers=key)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reuse")
        wrong = await server.client.post("/v1/jobs", json={"body": {}}, headers={"Idempotency-Key": "two"})
        assert wrong.status_code == 400
        right = await server.client.post("/v1/jobs", json={"body": chat_body()}, headers={"Idempotency-Key": "two"})
        assert right.status_code == 202  # nothing was made by the first


async def test_hundreds_at_once_share_few_inboxes(db):
    async with serving(db) as server:
        answers = await asyncio.gather(
            *(server.client.post("/v1/jobs", json={"body": chat_body(str(n))}) for n in range(120))
        )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 120
        async with db.read() as connection:
            inboxes = (await connection.execute(sa.select(batch_rows.c.is_inbox, batch_rows.c.total))).all()
        assert inboxes == [(True, 120)]
    async with db.read() as connection:  # sealed when the server stops: nobody adds to it any more
        assert (await connection.execute(sa.select(batch_rows.c.is_open))).scalars().all() == [False]


def test_a_jobs_id_is_read_as_it_is_written():
    assert jobs.parsed_id("job_" + "a" * 32 + "-0") == ("batch_" + "a" * 32, 0)
    for wrong in ("job_x-1", "job_" + "a" * 32, "job_" + "a" * 32 + "-01", "job_" + "a" * 32 + "-" + "9" * 30):
        assert jobs.parsed_id(wrong) is None
