"""Batches as OpenAI's clients use them, and what is ours beside: waiting, adding jobs, keys for sending again."""

import asyncio
import json
import time

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.intake import Source, Terms, take_in
from promptmill.settings import load
from promptmill.store import files, tenants
from promptmill.tables import batches, jobs
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, chat, line, rejected, row_of, uploaded, work
from tests.conftest import eventually

ENDPOINT = "/v1/chat/completions"


async def created(server: Serving, file_id: str, **more) -> dict:
    body = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h", **more}
    answer = await server.client.post("/v1/batches", json=body, headers=OPENAI)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def shown(server: Serving, batch_id: str) -> dict:
    answer = await server.client.get(f"/v1/batches/{batch_id}", headers=OPENAI)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until(server: Serving, batch_id: str, status: str) -> dict:
    async def there():
        batch = await shown(server, batch_id)
        assert batch["status"] in (status, "validating", "in_progress", "cancelling"), batch
        return batch if batch["status"] == status else None

    return await eventually(there)


async def test_from_validating_to_completed(db: Database):
    async with serving(db) as server:
        before = int(time.time())
        file_id = await uploaded(db, [line("a"), line("b"), line("c")])
        batch = await created(server, file_id, metadata={"run": "1"})
        assert batch["id"].startswith("batch_")
        assert before <= batch["created_at"] <= time.time()
        told = {name: batch[name] for name in ("object", "endpoint", "input_file_id", "completion_window", "status")}
        assert told == {
            "object": "batch", "endpoint": ENDPOINT, "input_file_id": file_id, "completion_window": "24h",
            "status": "validating",
        }  # fmt: skip
        assert batch["expires_at"] == pytest.approx(batch["created_at"] + 86_400, abs=1)
        assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
        for name in (
            "errors", "output_file_id", "error_file_id", "in_progress_at", "finalizing_at", "completed_at", "failed_at",
            "expired_at", "cancelling_at", "cancelled_at", "model",
        ):  # fmt: skip
            assert batch[name] is None, name
        assert batch["metadata"] == {"run": "1"}

        running = await until(server, batch["id"], "in_progress")
        assert running["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
        assert running["model"] == "m"
        assert running["in_progress_at"] >= before

        await work(db, batch["id"], [chat(), rejected()])
        running = await shown(server, batch["id"])
        assert running["request_counts"] == {"total": 3, "completed": 1, "failed": 1}
        assert running["output_file_id"].startswith("file-")
        assert running["error_file_id"].startswith("file-")

        await work(db, batch["id"], [chat()])
        done = await shown(server, batch["id"])
        assert done["status"] == "completed"
        assert done["completed_at"] == done["finalizing_at"] >= before
        assert done["output_file_id"] == running["output_file_id"]
        assert done["usage"] == {
            "input_tokens": 20, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 6}, "total_tokens": 30,
        }  # fmt: skip


async def test_the_sdk_reads_it(db: Database):
    openai = pytest.importorskip("openai")
    async with serving(db) as server, openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        file_id = await uploaded(db, [line("a")])
        batch = await client.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h")
        await until(server, batch.id, "in_progress")
        await work(db, batch.id, [chat()])
        done = await client.batches.retrieve(batch.id)
        assert (done.status, done.request_counts.completed, done.usage.total_tokens) == ("completed", 1, 15)
        assert [each.id async for each in await client.batches.list(limit=1)] == [batch.id]


async def test_a_wrong_file_fails_with_its_lines(db: Database):
    lines = [line("a"), b"{not json\n", line("a"), line("d", url="/v1/embeddings"), line("e", stream=True)]
    async with serving(db) as server:
        batch = await created(server, await uploaded(db, lines))
        failed = await until(server, batch["id"], "failed")
        assert failed["errors"]["object"] == "list"
        assert [(error["code"], error["line"], error["param"]) for error in failed["errors"]["data"]] == [
            ("invalid_json_line", 2, None),
            ("duplicate_custom_id", 3, "custom_id"),
            ("url_mismatch", 4, "url"),
            ("stream_not_supported", 5, "stream"),
        ]
        assert failed["failed_at"] is not None
        assert failed["request_counts"]["total"] == 0
        async with db.read() as connection:
            assert (await connection.execute(sa.select(sa.func.count()).select_from(jobs))).scalar() == 0


async def test_an_empty_file_fails(db: Database):
    async with serving(db) as server:
        batch = await created(server, await uploaded(db, []))
        failed = await until(server, batch["id"], "failed")
        assert [error["code"] for error in failed["errors"]["data"]] == ["empty_file"]
        assert failed["errors"]["data"][0]["line"] is None


async def test_errors_are_bounded_and_counted(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        batch = await created(server, await uploaded(sqlite_db, [b"nonsense\n"] * 250))
        errors = (await until(server, batch["id"], "failed"))["errors"]["data"]
        assert [error["line"] for error in errors] == [*range(1, 101), None]
        assert errors[-1]["message"] == "150 more lines are wrong"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"input_file_id": "file-nobody"}, "input_file_id"),
        ({"input_file_id": "a\ud83db"}, None),
        ({"input_file_id": None}, "input_file_id"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "366d"}, "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": 1}}, None),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"priority": 10**30}, None),
        ({"priority": "urgent"}, "priority"),
        ({"model_id": ""}, None),
    ],
)
async def test_a_wrong_request_is_told_why(sqlite_db: Database, change: dict, param: str | None):
    async with serving(sqlite_db) as server:
        body = {"input_file_id": await uploaded(sqlite_db, [line()]), "endpoint": ENDPOINT, **change}
        data = json.dumps({name: value for name, value in body.items() if value is not None})
        answer = await server.client.post("/v1/batches", content=data, headers=OPENAI)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["message"]
        if param is not None:
            assert error["param"] == param
        async with sqlite_db.read() as connection:
            assert (await connection.execute(sa.select(sa.func.count()).select_from(batches))).scalar() == 0


async def test_a_file_of_another_purpose_or_tenant_is_refused(db: Database):
    async with serving(db) as server:
        for file_id in (
            await uploaded(db, [line()], purpose="user_data"),
            await uploaded(db, [line()], tenant_id=77),
            await uploaded(db, [line()], status="pending"),
        ):
            body = {"input_file_id": file_id, "endpoint": ENDPOINT}
            answer = await server.client.post("/v1/batches", json=body, headers=OPENAI)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")


async def test_listed_newest_first_in_pages(db: Database):
    async with serving(db) as server:
        file_id = await uploaded(db, [line()])
        ids = [(await created(server, file_id))["id"] for _ in range(5)][::-1]
        first = (await server.client.get("/v1/batches?limit=2", headers=OPENAI)).json()
        assert [batch["id"] for batch in first["data"]] == ids[:2]
        assert (first["object"], first["first_id"], first["last_id"], first["has_more"]) == ("list", *ids[:2], True)
        rest = (await server.client.get(f"/v1/batches?after={ids[1]}&limit=3", headers=OPENAI)).json()
        assert [batch["id"] for batch in rest["data"]] == ids[2:]
        assert rest["has_more"] is False
        for query in ("limit=0", "limit=101", "limit=x", "after=batch_nobody", "after=%00"):
            assert (await server.client.get(f"/v1/batches?{query}", headers=OPENAI)).status_code == 400, query


async def test_inboxes_and_other_tenants_batches_are_not_there(db: Database):
    async with serving(db) as server:
        body = {"url": ENDPOINT, "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}
        job = (await server.client.post("/v1/jobs", json=body)).json()
        inbox = f"batch_{job['ids'][0].removeprefix('job_').partition('-')[0]}"
        mine = (await created(server, await uploaded(db, [line()])))["id"]
        async with db.write() as connection:
            await connection.execute(sa.update(batches).where(batches.c.public_id == mine).values(tenant_id=77))
        for batch_id in (inbox, mine, "batch_%00", "batch_" + "0" * 32):
            answer = await server.client.get(f"/v1/batches/{batch_id}", headers=OPENAI)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert (await server.client.post(f"/v1/batches/{batch_id}/cancel")).status_code == 404
        assert (await server.client.get("/v1/batches", headers=OPENAI)).json()["data"] == []


async def test_a_batch_of_the_command_line_is_shown(db: Database):
    settings = load({}, base_url="http://127.0.0.1:1/v1")
    taken = await take_in(db, settings, Source(name="p.jsonl", chunks=[line("a", url=None)]), Terms(), clock=time.time)
    async with serving(db) as server:
        batch = await shown(server, taken.batch.public_id)
    assert (batch["endpoint"], batch["status"], batch["completion_window"]) == (ENDPOINT, "in_progress", "background")
    assert batch["input_file_id"].startswith("file-")


async def test_cancel_while_it_runs(db: Database):
    async with serving(db) as server:
        batch = await created(server, await uploaded(db, [line("a"), line("b")]))
        await until(server, batch["id"], "in_progress")
        await work(db, batch["id"], [chat()])
        answer = await server.client.post(f"/v1/batches/{batch['id']}/cancel", headers=OPENAI)
        assert answer.status_code == 200
        assert answer.json()["status"] in ("cancelling", "cancelled")
        done = await until(server, batch["id"], "cancelled")
        assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        assert done["cancelled_at"] >= done["cancelling_at"]
        again = await server.client.post(f"/v1/batches/{batch['id']}/cancel", headers=OPENAI)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "batch_not_cancellable")


async def test_cancel_a_large_one_answers_at_once(db: Database):
    async with serving(db) as server:
        batch = await created(server, await uploaded(db, (line(str(n)) for n in range(20_000))))
        await eventually(lambda: shown_in_progress(server, batch["id"]), seconds=60)
        began = time.monotonic()
        answer = await server.client.post(f"/v1/batches/{batch['id']}/cancel", headers=OPENAI)
        assert time.monotonic() - began < 5.0
        assert answer.json()["status"] in ("cancelling", "cancelled")
        done = await eventually(lambda: ended(server, batch["id"]), seconds=60)
        assert done["request_counts"] == {"total": 20_000, "completed": 0, "failed": 20_000}


async def shown_in_progress(server: Serving, batch_id: str):
    return (await shown(server, batch_id))["status"] == "in_progress"


async def ended(server: Serving, batch_id: str):
    batch = await shown(server, batch_id)
    return batch if batch["status"] == "cancelled" else None


async def test_waiting_for_the_end(db: Database):
    async with serving(db) as server:
        batch = await created(server, await uploaded(db, [line("a")]))
        await until(server, batch["id"], "in_progress")
        began = time.monotonic()
        early = await server.client.get(f"/v1/batches/{batch['id']}?wait=0.3", headers=OPENAI)
        assert early.json()["status"] == "in_progress"
        assert 0.3 <= time.monotonic() - began < 5
        waiting = asyncio.create_task(server.client.get(f"/v1/batches/{batch['id']}?wait=30", headers=OPENAI))
        await asyncio.sleep(0.1)
        await work(db, batch["id"], [chat()])
        assert (await asyncio.wait_for(waiting, 10)).json()["status"] == "completed"
        for wrong in ("-1", "601", "nan", "x"):
            answer = await server.client.get(f"/v1/batches/{batch['id']}?wait={wrong}", headers=OPENAI)
            assert answer.status_code == 400, wrong


async def test_a_key_makes_it_once(db: Database):
    async with serving(db) as server:
        file_id = await uploaded(db, [line("a")])
        body = {"input_file_id": file_id, "endpoint": ENDPOINT}
        headers = {**OPENAI, "Idempotency-Key": "k-1"}
        answers = await asyncio.gather(
            *(server.client.post("/v1/batches", json=body, headers=headers) for _ in range(5))
        )
        made = {answer.json()["id"] for answer in answers if answer.status_code == 200}
        assert len(made) == 1
        for answer in answers:
            if answer.status_code != 200:
                assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_in_progress")
                assert answer.headers["retry-after"]
        again = await server.client.post("/v1/batches", json=body, headers=headers)
        assert again.json()["id"] in made
        other = await server.client.post("/v1/batches", json={**body, "priority": 1}, headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reuse")
        wrong = {"input_file_id": "file-x", "endpoint": ENDPOINT}
        for _ in range(2):  # what made nothing may be sent again
            answer = await server.client.post("/v1/batches", json=wrong, headers={**OPENAI, "Idempotency-Key": "k-2"})
            assert answer.status_code == 400
        long = await server.client.post("/v1/batches", json=body, headers={**OPENAI, "Idempotency-Key": "k" * 256})
        assert long.status_code == 400


async def test_jobs_are_added_until_it_is_sealed(db: Database):
    async with serving(db) as server:
        answer = await server.client.post(
            "/v1/batches", json={"open": True, "endpoint": ENDPOINT, "priority": "high"}, headers=OPENAI
        )
        batch = answer.json()
        assert (batch["status"], batch["open"], batch["priority"]) == ("in_progress", True, 1000)
        path = f"/v1/batches/{batch['id']}/jobs"
        one = {"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}
        added = await server.client.post(path, json={"requests": [one, {**one, "custom_id": None}]})
        assert added.status_code == 200, added.text
        assert [each.rpartition("-")[2] for each in added.json()["ids"]] == ["0", "1"]
        for requests, place in (
            ([one], 0),
            ([{**one, "custom_id": "b"}, {**one, "custom_id": "b"}], 1),
        ):
            twice = await server.client.post(path, json={"requests": requests})
            assert (twice.status_code, twice.json()["error"]["code"]) == (400, "duplicate_custom_id")
            assert twice.json()["error"]["param"] == f"requests[{place}].custom_id"
        for wrong in ({"requests": []}, {"requests": [{"body": None}]}, {"requests": [{"body": {}}]}, {}, [],
                      {"requests": [{**one, "custom_id": "z", "url": "/v1/embeddings"}]}):  # fmt: skip
            assert (await server.client.post(path, json=wrong)).status_code == 400, wrong
        key = {"Idempotency-Key": "add-1"}
        more = {"requests": [{**one, "custom_id": f"c{n}"} for n in range(100)]}
        ids = [(await server.client.post(path, json=more, headers=key)).json()["ids"] for _ in range(2)]
        assert ids[0] == ids[1]
        await work(db, batch["id"], [chat()] * 102)
        open_still = await shown(server, batch["id"])
        assert (open_still["status"], open_still["request_counts"]["completed"]) == ("in_progress", 102)
        sealed = (await server.client.post(f"/v1/batches/{batch['id']}/seal", headers=OPENAI)).json()
        assert (sealed["status"], sealed["open"]) == ("completed", False)
        late = await server.client.post(path, json={"requests": [{**one, "custom_id": "late"}]})
        assert (late.status_code, late.json()["error"]["code"]) == (409, "batch_not_open")


async def test_jobs_are_added_to_those_of_a_file(db: Database):
    async with serving(db) as server:
        batch = await created(server, await uploaded(db, [line("a"), line("b")]), open=True)
        await until(server, batch["id"], "in_progress")
        path = f"/v1/batches/{batch['id']}/jobs"
        one = {"custom_id": "b", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}
        assert (await server.client.post(path, json={"requests": [one]})).status_code == 400
        added = [await server.client.post(path, json={"requests": [{**one, "custom_id": name}]}) for name in ("c", "d")]
        assert [answer.json()["ids"][0].rpartition("-")[2] for answer in added] == ["2", "3"]
        await work(db, batch["id"], [chat()] * 4)
        await server.client.post(f"/v1/batches/{batch['id']}/seal")
        assert (await shown(server, batch["id"]))["request_counts"] == {"total": 4, "completed": 4, "failed": 0}


async def test_with_keys_each_sees_its_own(db: Database):
    key = await tenants.create_key(db, tenant="acme", name="k", is_admin=False, now=time.time())
    async with serving(db) as server:
        headers = {**OPENAI, "Authorization": f"Bearer {key}"}
        mine = (await server.client.get("/v1/batches", headers=headers)).json()
        assert mine["data"] == []
        assert (await server.client.get("/v1/batches", headers=OPENAI)).status_code == 401
        body = {"input_file_id": await uploaded(db, [line()]), "endpoint": ENDPOINT}
        assert (await server.client.post("/v1/batches", json=body, headers=headers)).status_code == 400


async def test_windows_and_output_expiry(db: Database):
    async with serving(db) as server:
        file_id = await uploaded(db, [line()])
        batch = await created(server, file_id, completion_window="90m")
        assert batch["expires_at"] == pytest.approx(batch["created_at"] + 5_400, abs=1)
        forever = await created(server, file_id, completion_window="background")
        assert forever["expires_at"] is None
        short = await created(server, file_id, output_expires_after={"anchor": "created_at", "seconds": 3_600})
        await until(server, short["id"], "in_progress")
        await work(db, short["id"], [chat()])
        done = await shown(server, short["id"])
        row = await row_of(db, short["id"])
        async with db.read() as connection:
            columns = sa.select(files.files.c.expires_at).where(files.files.c.public_id == done["output_file_id"])
            assert (await connection.execute(columns)).scalar() == pytest.approx((row.finished_at or 0) + 3_600)
