"""A batch that a command reads in is held by it; when it is gone, the batch can only be removed."""

import pytest
import sqlalchemy as sa

from promptmill.errors import NotNow
from promptmill.intake import Source, Terms, again, stream, take_in
from promptmill.job import BatchState
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import admissions, batches, changes, control
from promptmill.store.batches import NewBatch
from promptmill.store.changes import Change
from promptmill.tables import batches as batch_rows
from promptmill.tables import file_parts, files, jobs

SETTINGS = Settings(upstreams=(UpstreamConfig(name="up", url="http://up.invalid/v1"),))
LINES = [b'{"model": "m", "messages": [{"role": "user", "content": "%d"}]}\n' % n for n in range(4)]


async def left_half_way(db, clock, monkeypatch):
    """What a command leaves that is killed while it reads."""

    async def killed(*_, **__) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream, "LINES_AT_ONCE", 1)
        patch.setattr(stream._Intake, "refuse_duplicates", killed)
        patch.setattr(batches, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            await take_in(db, SETTINGS, Source(name="p.jsonl", chunks=LINES), Terms(), clock=clock)
    return await batches.find(db, None)


async def counted(db) -> list[int]:
    async with db.read() as connection:
        tables = (batch_rows, jobs, file_parts, files)
        counts = [sa.select(sa.func.count()).select_from(table) for table in tables]
        return [(await connection.execute(statement)).scalar_one() for statement in counts]


async def test_what_its_reader_left_can_only_be_removed(db, clock, monkeypatch):
    batch = await left_half_way(db, clock, monkeypatch)
    assert await counted(db) == [1, 4, 4, 1]
    assert not batch.is_left(clock())
    assert not await batches.discard_left(db, batch, now=clock())
    clock.advance(admissions.HELD_SECONDS)
    assert await admissions.left(db, now=clock()) == []  # no server goes on with half a file
    assert not await admissions.stop(db, batch_id=batch.id, now=clock())
    for asked in (
        lambda: control.pause(db, batch_id=batch.id, now=clock()),
        lambda: changes.change(db, batch_id=batch.id, wanted=Change(priority=1), now=clock()),
        lambda: again.start_again(db, SETTINGS, batch.id, clock=clock),
    ):
        with pytest.raises(NotNow, match=f"if it is gone, remove the batch.*: promptmill cancel {batch.public_id}"):
            await asked()
    assert await batches.discard_left(db, batch, now=clock())
    assert await counted(db) == [0, 0, 0, 0]


async def test_whose_reader_lives_can_be_paused_meanwhile(db, clock, monkeypatch):
    batch = await left_half_way(db, clock, monkeypatch)
    assert await control.pause(db, batch_id=batch.id, now=clock())


async def test_a_reader_that_only_stood_still_writes_nothing_more(db, clock, monkeypatch):
    monkeypatch.setattr(stream, "LINES_AT_ONCE", 1)
    write, written = stream._Intake._write, 0

    async def removed_in_between(self, rows) -> None:
        nonlocal written
        if written == 2:
            clock.advance(admissions.HELD_SECONDS)
            assert await batches.discard_left(db, await batches.find(db, None), now=clock())
        await write(self, rows)
        written += 1

    monkeypatch.setattr(stream._Intake, "_write", removed_in_between)
    with pytest.raises(NotNow, match="was cancelled while its lines were read"):
        await take_in(db, SETTINGS, Source(name="p.jsonl", chunks=LINES), Terms(), clock=clock)
    assert written == 2
    assert await counted(db) == [0, 0, 0, 0]


async def test_what_is_not_held_any_more_is_not_opened(db, clock, monkeypatch):
    opened = batches.open_

    async def removed_before(*args, **kwargs) -> None:
        clock.advance(admissions.HELD_SECONDS)
        await batches.discard_left(db, await batches.find(db, None), now=clock())
        await opened(*args, **kwargs)

    monkeypatch.setattr(batches, "open_", removed_before)
    with pytest.raises(NotNow, match="was cancelled while its lines were read"):
        await take_in(db, SETTINGS, Source(name="p.jsonl", chunks=LINES), Terms(), clock=clock)
    assert await counted(db) == [0, 0, 0, 0]


async def test_every_group_of_lines_says_that_it_is_held(sqlite_db, clock, monkeypatch):
    monkeypatch.setattr(stream, "LINES_AT_ONCE", 1)
    write = stream._Intake._write

    async def slowly(self, rows) -> None:
        clock.advance(admissions.HELD_SECONDS - 1)
        await write(self, rows)
        assert not (await batches.find(sqlite_db, None)).is_left(clock())

    monkeypatch.setattr(stream._Intake, "_write", slowly)
    taken = await take_in(sqlite_db, SETTINGS, Source(name="p.jsonl", chunks=LINES), Terms(), clock=clock)
    assert (taken.batch.state, taken.jobs) == (BatchState.IN_PROGRESS, 4)


async def test_a_batch_that_a_command_of_before_left_is_left_too(mill):
    new = NewBatch(file_id=1, source="t.jsonl", defaults="{}")
    batch = await batches.create(mill.db, new, now=mill.clock())
    assert not batch.is_left(mill.clock())
    mill.clock.advance(admissions.HELD_SECONDS)
    assert await batches.discard_left(mill.db, batch, now=mill.clock())


async def test_one_of_the_http_door_is_never_left(mill):
    """Any server takes it over."""
    new = NewBatch(file_id=1, source="t.jsonl", defaults="{}", dialect="openai", validator="api:1", validator_until=0.0)
    batch = await batches.create(mill.db, new, now=mill.clock())
    mill.clock.advance(1e6)
    assert not batch.is_left(mill.clock())
    assert await admissions.left(mill.db, now=mill.clock()) == [batch.id]
