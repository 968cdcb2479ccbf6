"""A batch as it happens: counts, jobs in the order in which they finish, the end; and taking it up again."""

import asyncio
import json
from collections.abc import AsyncIterator

from promptmill.engine import Database
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, chat, line, rejected, uploaded, work
from tests.conftest import eventually


async def started(server: Serving, db: Database, count: int) -> str:
    body = {
        "input_file_id": await uploaded(db, [line(f"c{n}") for n in range(count)]),
        "endpoint": "/v1/chat/completions",
    }
    batch = (await server.client.post("/v1/batches", json=body, headers=OPENAI)).json()

    async def there() -> bool:
        answer = await server.client.get(f"/v1/batches/{batch['id']}", headers=OPENAI)
        return answer.json()["status"] == "in_progress"

    await eventually(there)
    return batch["id"]


async def heard(server: Serving, batch_id: str, **more) -> AsyncIterator[dict]:
    """Events as they come; comments are left out."""
    async with server.client.stream("GET", f"/v1/batches/{batch_id}/events", **more) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict = {}
        async for text in answer.aiter_lines():
            name, _, value = text.partition(": ")
            if text == "":
                if event:
                    yield event
                event = {}
            elif name:
                event[name] = json.loads(value) if name == "data" else value


async def test_jobs_as_they_finish_and_the_end(db: Database):
    async with serving(db) as server:
        batch_id = await started(server, db, 4)
        await work(db, batch_id, [chat()])
        events = []

        async def listen():
            async for event in heard(server, batch_id):
                events.append(event)  # noqa: PERF401 - they are looked at while they come

        listening = asyncio.create_task(listen())
        await eventually(lambda: [event["event"] for event in events] == ["counts", "job"])
        assert events[0]["data"] == {
            "batch_id": batch_id, "status": "in_progress", "request_counts": {"total": 4, "completed": 1, "failed": 0}
        }  # fmt: skip
        await work(db, batch_id, [chat(), rejected(), chat()], order=[2, 1, 0])
        await asyncio.wait_for(listening, 10)
        jobs = [event for event in events if event["event"] == "job"]
        assert [job["data"]["custom_id"] for job in jobs] == ["c0", "c3", "c2", "c1"]
        assert [job["data"]["status"] for job in jobs] == ["succeeded", "succeeded", "failed", "succeeded"]
        assert jobs[2]["data"]["status_code"] == 400
        assert jobs[0]["data"]["attempts"] == 1
        ids = [int(job["id"]) for job in jobs]
        assert ids == sorted(ids)
        assert [event["event"] for event in events][-1] == "done"
        counts = [event["data"] for event in events if event["event"] == "counts"]
        assert counts[-1] == events[-1]["data"]
        assert events[-1]["data"]["status"] == "completed"


async def test_taken_up_where_it_was(db: Database):
    async with serving(db) as server:
        batch_id = await started(server, db, 5)
        await work(db, batch_id, [chat()] * 5)
        everything = [event async for event in heard(server, batch_id) if event["event"] == "job"]
        assert len(everything) == 5
        last = everything[2]["id"]
        for more in ({"headers": {"Last-Event-ID": last}}, {"params": {"after": last}}):
            rest = [event async for event in heard(server, batch_id, **more) if event["event"] == "job"]
            assert rest == everything[3:]


async def test_more_than_are_read_at_once(sqlite_db: Database, monkeypatch):
    monkeypatch.setattr("api.events._JOBS_AT_ONCE", 7)
    async with serving(sqlite_db) as server:
        batch_id = await started(server, sqlite_db, 30)
        await work(sqlite_db, batch_id, [chat()] * 30)
        names = [event["data"]["custom_id"] async for event in heard(server, batch_id) if event["event"] == "job"]
        assert names == [f"c{n}" for n in range(30)]


async def test_it_says_that_it_lives(sqlite_db: Database, monkeypatch):
    monkeypatch.setattr("api.events._ALIVE_SECONDS", 0.2)
    async with serving(sqlite_db) as server:
        batch_id = await started(server, sqlite_db, 1)
        async with server.client.stream("GET", f"/v1/batches/{batch_id}/events") as answer:
            async for text in answer.aiter_lines():
                if text.startswith(":"):
                    break


async def test_what_cannot_be_listened_to(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        assert (await server.client.get(f"/v1/batches/batch_{'0' * 32}/events")).status_code == 404
        batch_id = await started(server, sqlite_db, 1)
        for wrong in ("x", "-1", "²", "9" * 30):
            answer = await server.client.get(f"/v1/batches/{batch_id}/events", params={"after": wrong})
            assert answer.status_code == 400, wrong
