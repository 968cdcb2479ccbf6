"""Who reads a batch in, and what is left when that goes wrong: processes that die, stop, or lose it to another."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

from api.admitter import Admitter
from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer
from promptmill.content import PLAIN
from promptmill.engine import Database
from promptmill.intake.admit import admit
from promptmill.job import BatchState
from promptmill.settings import load
from promptmill.store import admissions, batches, files
from promptmill.store.batches import BatchRow, NewBatch
from promptmill.store.rows import last_within
from promptmill.tables import batch_lanes, file_parts, jobs
from tests.api.mill import _working
from tests.api.server import serving
from tests.api.uploaded import OPENAI, line, uploaded
from tests.conftest import eventually

ENDPOINT = "/v1/chat/completions"
SETTINGS = load({}, base_url="http://127.0.0.1:1/v1")


async def validating(db: Database, file_id: str, *, holder: str | None = None, until: float = 0.0) -> BatchRow:
    inside = await files.find(db, file_id)
    assert inside is not None
    new = NewBatch(
        file_id=inside, source="prompts.jsonl", defaults=json.dumps({"endpoint": ENDPOINT}), dialect="openai",
        endpoint=ENDPOINT, validator=holder, validator_until=until,
    )  # fmt: skip
    return await batches.create(db, new, now=time.time())


async def count(db: Database, table: sa.Table, batch_id: int) -> int:
    async with db.read() as connection:
        statement = sa.select(sa.func.count()).select_from(table).where(table.c.batch_id == batch_id)
        return (await connection.execute(statement)).scalar_one()


@asynccontextmanager
async def admitter(db: Database, holder: str = "me"):
    rung = asyncio.Event()

    async def ring() -> None:
        rung.set()

    made = Admitter(db, SETTINGS, ring=ring, holder=holder, clock=time.time)
    async with made.running():
        yield made, rung


async def state(db: Database, batch: BatchRow) -> BatchState:
    return (await batches.get(db, batch.id)).state


async def test_what_a_dead_process_left_is_begun_anew(db: Database):
    file_id = await uploaded(db, [line(str(n)) for n in range(1_200)])
    batch = await validating(db, file_id, holder="dead", until=time.time() - 1)
    async with db.write() as connection:  # it came as far as this
        row = {"batch_id": batch.id, "lane_id": 1, "file_id": batch.file_id, "state": "ready", "bytes": 2, "tokens": 1}
        await connection.execute(sa.insert(jobs), [{**row, "position": n, "part": n} for n in range(700)])
        await connection.execute(sa.insert(batch_lanes).values(batch_id=batch.id, lane_id=1, total=700))
    async with admitter(db) as (_, rung):
        await asyncio.wait_for(rung.wait(), 20)
    opened = await batches.get(db, batch.id)
    assert (opened.state, opened.total) == (BatchState.IN_PROGRESS, 1_200)
    assert await count(db, jobs, batch.id) == 1_200
    assert sum((await batches.unfinished_lanes(db, batch.id)).values()) == 1_200
    async with db.read() as connection:
        parts = sa.select(sa.func.count()).select_from(file_parts).where(file_parts.c.file_id == batch.file_id)
        assert (await connection.execute(parts)).scalar() == 1_200  # the lines stay where they are


async def test_one_that_is_held_is_left_alone(db: Database):
    batch = await validating(db, await uploaded(db, [line()]), holder="another", until=time.time() + 60)
    async with admitter(db) as (mine, _):
        mine.admit(batch.id)
        await mine.done(batch.id, within_seconds=5)
        assert await state(db, batch) is BatchState.VALIDATING


async def test_two_processes_read_it_in_once(db: Database):
    batch = await validating(db, await uploaded(db, [line(str(n)) for n in range(500)]))
    async with admitter(db, "one") as (one, _), admitter(db, "two") as (two, _):
        for each in (one, two):
            each.admit(batch.id)
        await eventually(lambda: is_open(db, batch))
    assert (await batches.get(db, batch.id)).total == 500
    assert await count(db, jobs, batch.id) == 500


async def is_open(db: Database, batch: BatchRow) -> bool:
    return await state(db, batch) is BatchState.IN_PROGRESS


async def test_who_lost_it_writes_nothing_more(db: Database, monkeypatch):
    batch = await validating(db, await uploaded(db, [line(str(n)) for n in range(1_200)]))
    assert await admissions.take(db, batch_id=batch.id, holder="slow", now=1_000.0)
    whole = admissions.lines

    async def stolen(*args):
        async for group in whole(*args):
            yield group
            assert await admissions.take(db, batch_id=batch.id, holder="quick", now=2_000.0)

    monkeypatch.setattr(admissions, "lines", stolen)
    with pytest.raises(admissions.Lost):
        await admit(db, SETTINGS, batch.id, holder="slow", clock=lambda: 1_000.0)
    assert await state(db, batch) is BatchState.VALIDATING
    monkeypatch.undo()
    assert await admit(db, SETTINGS, batch.id, holder="quick", clock=lambda: 2_000.0)
    assert await count(db, jobs, batch.id) == 1_200


async def test_a_stop_leaves_it_for_the_next_start(db: Database, monkeypatch):
    batch = await validating(db, await uploaded(db, [line(str(n)) for n in range(1_200)]))
    whole, first_group = admissions.lines, asyncio.Event()

    async def slow(*args):
        async for group in whole(*args):
            yield group
            first_group.set()
            await asyncio.sleep(60)

    monkeypatch.setattr(admissions, "lines", slow)
    async with admitter(db, "one"):
        await asyncio.wait_for(first_group.wait(), 10)
    monkeypatch.undo()
    assert await state(db, batch) is BatchState.VALIDATING
    async with admitter(db, "two") as (_, rung):  # at once: it was released
        await asyncio.wait_for(rung.wait(), 4)
    assert await count(db, jobs, batch.id) == 1_200


async def test_cancelled_while_it_is_read(db: Database, monkeypatch):
    whole, first_group = admissions.lines, asyncio.Event()

    async def slow(*args):
        async for group in whole(*args):
            yield group
            first_group.set()
            await asyncio.sleep(0.2)

    monkeypatch.setattr(admissions, "lines", slow)
    async with serving(db) as server:
        file_id = await uploaded(db, [line(str(n)) for n in range(3_000)])
        body = {"input_file_id": file_id, "endpoint": ENDPOINT}
        batch_id = (await server.client.post("/v1/batches", json=body, headers=OPENAI)).json()["id"]
        await asyncio.wait_for(first_group.wait(), 10)
        asked = await server.client.post(f"/v1/batches/{batch_id}/cancel", headers=OPENAI)
        assert asked.json()["status"] in ("cancelling", "cancelled")

        async def cancelled():
            batch = (await server.client.get(f"/v1/batches/{batch_id}", headers=OPENAI)).json()
            return batch if batch["status"] == "cancelled" else None

        done = await eventually(cancelled)
    assert done["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert done["cancelled_at"] is not None
    async with db.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(jobs))).scalar() == 0


async def test_others_have_their_turn_meanwhile(sqlite_db: Database):
    await validating(sqlite_db, await uploaded(sqlite_db, [line(str(n)) for n in range(20_000)]))
    pauses = []

    async def watch() -> None:
        while True:
            began = time.process_time()  # what others do on a busy machine is not counted
            await asyncio.sleep(0)
            pauses.append(time.process_time() - began)

    watching = asyncio.create_task(watch())
    async with admitter(sqlite_db) as (_, rung):
        await asyncio.wait_for(rung.wait(), 60)
    watching.cancel()
    pauses.sort()
    assert pauses[int(len(pauses) * 0.999)] < 0.05  # of the slowest machine; it is a few milliseconds


async def test_large_lines_are_read_a_few_at_a_time(db: Database):
    noise = [bytes([n % 256]) * 10 for n in range(100)]
    file_id = await files.create(db, filename="big.jsonl", purpose="batch", now=1.0)
    async with db.write() as connection:
        large = [(file_id, n, n + 1, None, None, PLAIN, each * 50_000) for n, each in enumerate(noise)]
        await db.insert(connection, file_parts, files.PART_COLUMNS, large)
    sizes = [sum(len(row[3]) for row in group) async for group in admissions.lines(db, file_id)]
    assert sum(sizes) == 100 * 500_000
    assert max(sizes) <= admissions.BYTES_AT_ONCE


def test_the_first_one_goes_whatever_its_size():
    assert last_within([(3, 100)], 10) == 3
    assert last_within([(3, 100), (4, 1)], 10) == 3
    assert last_within([(3, 5), (4, 5), (9, 1)], 10) == 4


async def test_from_upload_to_output(db: Database):
    """All the way, with a worker and an endpoint that answers."""
    lines = b"".join(line(f"c{n}", text=f"question {n}") for n in range(40))
    async with (
        SimulateServer(SimulateConfig(port=0, latency_seconds=(0.0, 0.01))) as upstream,
        _working(db, upstream.url, {}) as (hints, _),
        serving(db, hints=hints, base_url=upstream.url) as server,
    ):
        form = {"purpose": "batch"}
        up = await server.client.post("/v1/files", data=form, files={"file": ("p.jsonl", lines)}, headers=OPENAI)
        body = {"input_file_id": up.json()["id"], "endpoint": ENDPOINT}
        made = (await server.client.post("/v1/batches", json=body, headers=OPENAI)).json()
        path = f"/v1/batches/{made['id']}?wait=60"
        done = (await server.client.get(path, headers=OPENAI)).json()
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 40), done
        output = await server.client.get(f"/v1/files/{done['output_file_id']}/content")
        told = [json.loads(each) for each in output.content.splitlines()]
        assert [each["custom_id"] for each in told] == [f"c{n}" for n in range(40)]
        assert done["usage"]["total_tokens"] > 0
