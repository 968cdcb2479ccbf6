"""Batches are locked in the order of their ids, and jobs before their batch, by whoever it is: else PostgreSQL finds
two that wait for each other, and ends one of them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.intake import Source, Terms, stream, take_in
from promptmill.intake.inbox import INBOX_SECONDS, Inbox, Submission
from promptmill.settings import load
from promptmill.store import upkeep
from promptmill.tables import batches
from tests.conftest import Clock, eventually

SETTINGS = load({"PROMPTMILL_UPSTREAM_URL": "http://127.0.0.1:1/v1"})
LINE = b'{"url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"Hi"}]}}'


@pytest.fixture
async def postgres(postgres_db_url: str) -> AsyncIterator[Database]:
    """SQLite has one writer, so it knows no such thing."""
    database = Database(postgres_db_url)
    yield database
    await database.aclose()


async def is_waiting(db: Database) -> bool:
    """Does anybody wait for a lock?"""
    async with db.read() as connection:
        asked = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool((await connection.execute(asked)).scalar())


async def test_inboxes_that_come_of_age_together_are_sealed_in_the_order_of_their_ids(postgres: Database, clock: Clock):
    async def ring() -> None:
        pass

    box = Inbox(postgres, SETTINGS, ring=ring, holder="h", clock=clock)
    parsed, lane_id = await box.checked(1, LINE)

    def of(tenant_id: int) -> Submission:
        return Submission(tenant_id=tenant_id, line=LINE, parsed=parsed, lane_id=lane_id)

    first, second = [made.key[0] for made in await box.submit([of(1), of(2)])]
    clock.advance(INBOX_SECONDS + 1)
    async with postgres.write() as connection:  # as whoever records answers of both
        for batch_id in (first, second):
            touched = sa.update(batches).where(batches.c.id == batch_id).values(succeeded=batches.c.succeeded)
            await connection.execute(touched)
            if batch_id == first:
                submitting = asyncio.create_task(box.submit([of(2), of(1)]))
                await eventually(lambda: is_waiting(postgres))
    later = [made.key[0] for made in await submitting]
    assert min(later) > max(first, second)


async def test_a_line_that_is_refused_late_is_locked_before_its_batch(postgres: Database, clock: Clock, monkeypatch):
    """Its deadline has passed while the input was read: upkeep moves its job at the same moment."""
    expiring: list[asyncio.Task[int]] = []
    hold = stream._Intake._hold

    async def held(self, connection) -> None:
        await hold(self, connection)
        if self.lines == 2 and self._batch.deadline and not expiring and self._duplicates_are_looked_for:
            clock.advance(100)
            expiring.append(asyncio.create_task(upkeep.expire(postgres, now=clock())))
            await eventually(lambda: is_waiting(postgres))

    refuse = stream._Intake.refuse_duplicates

    async def refusing(self) -> None:
        self._duplicates_are_looked_for = True
        await refuse(self)

    monkeypatch.setattr(stream._Intake, "_duplicates_are_looked_for", False, raising=False)
    monkeypatch.setattr(stream._Intake, "_hold", held)
    monkeypatch.setattr(stream._Intake, "refuse_duplicates", refusing)
    line = b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}\n'
    terms = Terms(skip_bad_lines=True, deadline=clock() + 10)
    taken = await take_in(postgres, SETTINGS, Source(name="f.jsonl", chunks=[line, line]), terms, clock=clock)
    assert taken.skipped == 1
    assert await expiring[0] <= 1
