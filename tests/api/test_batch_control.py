"""Batches while they run, over HTTP: paused, changed, stopped, tried again; each tenant its own."""

import asyncio
import json
import time

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import BatchState
from promptmill.store import admissions, batches, control, files, tenants
from promptmill.store.batches import NewBatch
from promptmill.tables import batches as batch_rows
from tests.api.mill import mill
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, TOGETHER, chat, line, rejected, row_of, uploaded, work
from tests.conftest import eventually
from tests.worker.endpoint import chat as answer_of
from tests.worker.endpoint import refusal, text_of

ENDPOINT = "/v1/chat/completions"


async def made(server: Serving, count: int = 3, *, headers=OPENAI, **more) -> dict:
    """A batch that is in progress."""
    file_id = await uploaded(server.app.state.db, [line(f"c{n}", text=str(n)) for n in range(count)])
    return await made_of(server, file_id, headers=headers, **more)


async def made_of(server: Serving, file_id: str, *, headers=OPENAI, **more) -> dict:
    body = {"input_file_id": file_id, "endpoint": ENDPOINT, **more}
    answer = await server.client.post("/v1/batches", json=body, headers=headers)
    assert answer.is_success, answer.text
    batch_id = answer.json().get("job", answer.json())["id"]

    async def read_in():
        batch = await shown(server, batch_id, headers=headers)
        return batch if batch["status"].lower() == "in_progress" else None

    return await eventually(read_in)


async def shown(server: Serving, batch_id: str, *, headers=OPENAI) -> dict:
    answer = await server.client.get(f"/v1/batches/{batch_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(server: Serving, path: str, body=None, *, status: int = 200, headers=OPENAI, method="POST") -> dict:
    answer = await server.client.request(method, path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(answer: dict) -> tuple[str, str | None]:
    return answer["error"]["code"], answer["error"]["param"]


@pytest.fixture
async def server(sqlite_db: Database):
    async with serving(sqlite_db) as made_server:
        made_server.app.state.db = sqlite_db
        yield made_server


@pytest.fixture
async def either(db: Database):
    """One on each kind of database, for what moves many rows."""
    async with serving(db) as made_server:
        made_server.app.state.db = db
        yield made_server


HANDLING = {
    "weight": 2.5, "max_in_flight": 7, "requests_per_minute": 60.0, "tokens_per_minute": 9_000.0,
    "budget_tokens": 1_000_000, "budget_cost": 12.5, "canary": 2, "canary_percent": 20.0, "canary_then": "ask",
    "not_before": 4e9,
}  # fmt: skip


@pytest.mark.parametrize("headers", [OPENAI, TOGETHER], ids=["openai", "together"])
async def test_how_it_is_handled_is_asked_for_and_shown(server, headers):
    batch = await made(server, headers=headers, priority="background", **HANDLING)
    assert {name: batch[name] for name in HANDLING} == HANDLING
    assert (batch["priority"], batch["paused"], batch["waits_for"]) == (-1_999, False, "not_before")
    if headers is OPENAI:
        assert batch["expires_at"] == 4_000_086_400  # the window opens when it may start


NONSENSE = [
    ("weight", 0), ("weight", None), ("max_in_flight", -1), ("max_in_flight", 10**12), ("canary_then", "guess"),
    ("canary_percent", 101), ("budget_cost", 0), ("not_before", "tomorrow"), ("completion_window", "soon"),
    ("priority", "urgent"),
]  # fmt: skip


async def test_what_makes_no_sense_is_refused_by_its_name(server):
    file_id = await uploaded(server.app.state.db, [line()])
    path = f"/v1/batches/{(await made_of(server, file_id))['id']}"
    for field, value in NONSENSE:
        body = {"input_file_id": file_id, "endpoint": ENDPOINT, field: value}
        assert refused(await post(server, "/v1/batches", body, status=400)) == ("invalid_request", field)
        assert refused(await post(server, path, {field: value}, status=400)) == ("invalid_request", field)


async def test_an_open_batch_without_jobs_has_no_canary(server):
    body = {"open": True, "endpoint": ENDPOINT, "canary": 5}
    assert refused(await post(server, "/v1/batches", body, status=400)) == ("invalid_request", "canary")


async def test_pause_and_resume(server):
    path = f"/v1/batches/{(await made(server))['id']}"
    for _ in range(2):  # twice is as good as once
        paused = await post(server, f"{path}/pause")
        assert (paused["paused"], paused["pause_reason"], paused["waits_for"]) == (True, None, "paused")
    for _ in range(2):
        resumed = await post(server, f"{path}/resume")
        assert (resumed["paused"], resumed["waits_for"], resumed["status"]) == (False, None, "in_progress")
    await post(server, f"{path}/cancel")
    assert refused(await post(server, f"{path}/pause", status=409)) == ("wrong_state", None)


async def test_change_what_is_named(either):
    server = either
    batch = await made(server, max_in_flight=3, metadata={"a": "b"})
    path, soon = f"/v1/batches/{batch['id']}", int(time.time()) + 3_600
    changed = await post(server, path, {"priority": "high", "deadline": soon, "weight": 2}, method="PATCH")
    assert (changed["priority"], changed["expires_at"], changed["weight"]) == (1_000, soon, 2.0)
    assert (changed["max_in_flight"], changed["metadata"]) == (3, {"a": "b"})
    changed = await post(server, path, {"completion_window": "48h", "max_in_flight": None, "metadata": None})
    assert changed["expires_at"] == pytest.approx(batch["created_at"] + 172_800, abs=1)
    assert (changed["completion_window"], changed["max_in_flight"], changed["metadata"]) == ("48h", None, None)
    assert await post(server, path, {}) == changed
    changed = await post(server, path, {"deadline": "2099-01-01T00:00:00Z"})
    assert changed["expires_at"] == 4_070_908_800
    assert refused(await post(server, path, {"deadline": 1_000}, status=400)) == ("invalid_request", "deadline")
    await post(server, f"{path}/cancel")
    assert refused(await post(server, path, {"weight": 3}, status=409)) == ("wrong_state", None)


@pytest.mark.parametrize("how", ["body", "query"])
async def test_cancel_may_break_calls_off(server, how):
    batch = await made(server)
    row = await row_of(server.app.state.db, batch["id"])
    body, query = ({"abort": True}, "") if how == "body" else (None, "?abort=true")
    ended = await post(server, f"/v1/batches/{batch['id']}/cancel{query}", body)
    assert ended["status"] in ("cancelling", "cancelled")

    async def is_cancelled() -> bool:
        return (await row_of(server.app.state.db, batch["id"])).state is BatchState.CANCELLED

    await eventually(is_cancelled)
    assert (await batches.get(server.app.state.db, row.id)).aborts_calls


async def test_a_server_alone_ends_what_others_cancelled(server):
    db = server.app.state.db
    batch = await made(server)
    row = await row_of(db, batch["id"])
    assert await control.cancel(db, batch_id=row.id, now=time.time())  # as a command that was killed left it

    async def cancelled():
        return (await shown(server, batch["id"]))["status"] == "cancelled"

    await eventually(cancelled)
    assert (await shown(server, batch["id"]))["request_counts"] == {"total": 3, "completed": 0, "failed": 3}


async def test_retry_takes_what_failed_and_its_files_show_it(either):
    server, db = either, either.app.state.db
    batch = await made(server, 4)
    path = f"/v1/batches/{batch['id']}"
    await work(db, batch["id"], [chat("first"), rejected(), rejected(), chat("last")])
    done = await shown(server, batch["id"])
    files = [done["output_file_id"], done["error_file_id"]]
    assert [len(await content(server, file_id)) for file_id in files] == [2, 2]
    told = await post(server, f"{path}/retry")
    assert told == {"object": "batch.retry", "batch_id": batch["id"], "retried": 2, "left": 0}
    running = await shown(server, batch["id"])
    assert (running["status"], running["completed_at"]) == ("in_progress", None)
    assert running["request_counts"] == {"total": 4, "completed": 2, "failed": 0}
    await work(db, batch["id"], [chat("again"), chat("and again")])
    done = await shown(server, batch["id"])
    assert (done["status"], done["output_file_id"], done["error_file_id"]) == ("completed", files[0], None)
    texts = [each["response"]["body"]["choices"][0]["message"]["content"] for each in await content(server, files[0])]
    assert texts == ["first", "again", "and again", "last"]
    assert await content(server, files[1]) == []
    assert (await post(server, f"{path}/retry"))["retried"] == 0


async def content(server: Serving, file_id: str) -> list[dict]:
    answer = await server.client.get(f"/v1/files/{file_id}/content", headers=OPENAI)
    assert answer.status_code == 200, answer.text
    return [json.loads(each) for each in answer.text.splitlines()]


async def test_retry_takes_those_that_are_named(either):
    server, db = either, either.app.state.db
    batch = await made(server, 4)
    path = f"/v1/batches/{batch['id']}/retry"
    await work(db, batch["id"], [rejected()] * 4)
    assert (await post(server, path, {"custom_ids": ["c2"], "job_ids": [job(batch, 3)]}))["retried"] == 2
    assert (await post(server, path, {"states": ["expired"], "custom_ids": ["c0"]}))["retried"] == 0
    for body, param in (
        ({"custom_ids": ["nobody"]}, "custom_ids"),
        ({"job_ids": ["job_1"]}, "job_ids"),
        ({"job_ids": [job(batch, 1), job(batch, 4)]}, "job_ids"),
        ({"job_ids": [f"{job(batch, 4)}00000000000000"]}, "job_ids"),
        ({"states": ["succeeded"]}, "states"),
        ({"states": []}, "states"),
    ):
        assert refused(await post(server, path, body, status=400)) == ("invalid_request", param)


async def test_a_named_job_that_succeeded_is_left(either):
    server, db = either, either.app.state.db
    batch = await made(server, 3)
    await work(db, batch["id"], [rejected(), chat(), chat()])
    told = await post(server, f"/v1/batches/{batch['id']}/retry", {"custom_ids": ["c0", "c2"]})
    assert (told["retried"], told["left"]) == (1, 1)


async def test_a_window_ends_before_the_calendar_does(server):
    """Else nobody could be told of the batch any more."""
    file_id = await uploaded(server.app.state.db, [line()])
    body = {"input_file_id": file_id, "endpoint": ENDPOINT, "not_before": 253_402_300_000, "completion_window": "365d"}
    assert (await post(server, "/v1/batches", body, status=400))["error"]["message"].startswith("deadline must be")
    path = f"/v1/batches/{(await made_of(server, file_id))['id']}"
    more = {"not_before": 253_402_300_000, "completion_window": "365d"}
    assert refused(await post(server, path, more, status=400)) == ("invalid_request", "deadline")
    assert len((await post(server, "/v1/batches", method="GET"))["data"]) == 1


def job(batch: dict, position: int) -> str:
    return f"job_{batch['id'].removeprefix('batch_')}-{position}"


async def test_what_failed_as_a_whole_has_no_jobs_to_try(server):
    file_id = await uploaded(server.app.state.db, [b"{no json\n"])
    made_batch = await post(server, "/v1/batches", {"input_file_id": file_id, "endpoint": ENDPOINT})

    async def failed():
        return (await shown(server, made_batch["id"]))["status"] == "failed"

    await eventually(failed)
    path = f"/v1/batches/{made_batch['id']}/retry"
    assert refused(await post(server, path, status=409)) == ("wrong_state", None)


async def test_other_tenants_batches_are_not_there(sqlite_db: Database):
    db = sqlite_db
    keys = [await tenants.create_key(db, tenant=name, name="k", is_admin=False, now=1.0) for name in ("one", "other")]
    mine, theirs = ({**OPENAI, "Authorization": f"Bearer {key}"} for key in keys)
    async with serving(db) as server:
        batch_id = (await post(server, "/v1/batches", {"open": True, "endpoint": ENDPOINT}, headers=mine))["id"]
        for action in ("/pause", "/resume", "/cancel", "/retry", ""):
            body = {} if not action else None
            told = await post(server, f"/v1/batches/{batch_id}{action}", body, status=404, headers=theirs)
            assert refused(told) == ("not_found", "id")
        assert (await post(server, f"/v1/batches/{batch_id}/pause", headers=mine))["paused"]


async def test_an_admin_s_key_reaches_the_batches_of_all(sqlite_db: Database):
    db = sqlite_db
    key = await tenants.create_key(db, tenant="one", name="k", is_admin=False, now=1.0)
    admins = await tenants.create_key(db, tenant="other", name="a", is_admin=True, now=1.0)
    mine, admin = ({**OPENAI, "Authorization": f"Bearer {each}"} for each in (key, admins))
    async with serving(db) as server:
        batch_id = (await post(server, "/v1/batches", {"open": True, "endpoint": ENDPOINT}, headers=mine))["id"]
        path = f"/v1/batches/{batch_id}"
        assert (await post(server, f"{path}/pause", headers=admin))["paused"]
        (told,) = (await post(server, "/v1/pauses", method="GET", headers=admin))["data"]
        assert told["id"] == batch_id
        assert not (await post(server, f"{path}/resume", headers=admin))["paused"]
        assert (await post(server, path, {"weight": 3}, headers=admin))["weight"] == 3
        assert (await post(server, path, method="GET", headers=admin))["weight"] == 3
        assert (await post(server, f"{path}/retry", headers=admin))["retried"] == 0
        added = {"requests": [{"body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}]}
        await post(server, f"{path}/jobs", added, status=404, headers=admin)  # its content is its tenant's own
        assert (await post(server, "/v1/batches", method="GET", headers=admin))["data"] == []
        assert (await post(server, f"{path}/seal", headers=admin))["id"] == batch_id
        await post(server, f"{path}/cancel", status=409, headers=admin)  # it had no jobs, and so has ended


async def test_what_a_killed_command_was_reading_in_is_removed(server):
    db = server.app.state.db
    file_id = await files.create(db, filename="p.jsonl", purpose="batch", now=time.time())
    held = {"validator": f"{admissions.COMMAND}1", "validator_until": time.time() + 60}
    batch = await batches.create(
        db, NewBatch(file_id=file_id, source="p.jsonl", defaults="{}", **held), now=time.time()
    )
    path = f"/v1/batches/{batch.public_id}"
    assert refused(await post(server, f"{path}/cancel", status=409)) == ("wrong_state", None)
    async with db.write() as connection:
        await connection.execute(sa.update(batch_rows).values(validator_until=time.time() - 1))
    for action in ("/seal", "/pause", "/retry"):
        assert refused(await post(server, f"{path}{action}", status=409)) == ("wrong_state", None)
    assert (await post(server, f"{path}/cancel"))["status"] == "cancelled"
    await post(server, path, method="GET", status=404)


async def test_a_worker_obeys_at_once(db: Database):
    gate = asyncio.Event()

    async def answered(call):
        if text_of(call) == "0" and not gate.is_set():
            return refusal("400 Bad Request")
        await asyncio.sleep(0.05)
        return answer_of()

    async with mill(db, answered, max_in_flight=4) as made_mill:
        server = made_mill.serving
        server.app.state.db = db
        batch = await made(server, 100)
        path = f"/v1/batches/{batch['id']}"
        await eventually(lambda: len(made_mill.upstream.calls) > 8)
        await post(server, f"{path}/pause")
        await asyncio.sleep(0)
        await eventually(lambda: not made_mill.upstream.in_flight)
        sent = len(made_mill.upstream.calls)
        assert sent < 100
        await post(server, path, {"max_in_flight": 100})
        assert len(made_mill.upstream.calls) == sent  # it is still paused
        gate.set()
        await post(server, f"{path}/retry")
        await post(server, f"{path}/resume")
        done = await shown(server, f"{batch['id']}?wait=20")
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 100)
        assert len(made_mill.upstream.calls) == 101


@pytest.mark.parametrize("path", ["", "/cancel", "/retry"])
async def test_a_misspelt_field_is_no_field(server, path):
    """It would be a budget that does not hold."""
    batch = await made(server)
    answer = await post(server, f"/v1/batches/{batch['id']}{path}", {"budget_token": 5}, status=400)
    assert answer["error"]["message"] == "budget_token is not known here."
    assert answer["error"]["param"] == "budget_token"


async def test_an_open_batch_that_has_nothing_left_waits_to_be_sealed(server):
    answer = await post(server, "/v1/batches", {"open": True, "completion_window": "background"})
    assert answer["foresight"]["reason"] == "open"
    assert answer["foresight"]["seconds_left"] is None
