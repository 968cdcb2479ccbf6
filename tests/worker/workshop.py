"""Everything around a drain but the command line: a batch taken in from lines, settings, and what the database says
afterwards."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.hints import Hints, LocalHints
from promptmill.intake import Source, Terms, take_in
from promptmill.job import State
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import batches
from promptmill.store.batches import BatchRow
from promptmill.store.results import Result, stream
from promptmill.tables import attempts, file_parts, jobs
from worker.attempt import Desk
from worker.drain import Drain, DrainTerms
from worker.limits.memory import MemoryLimiter

KEY = "sk-test-key-of-the-workshop"


def chats(count: int, *, model: str = "m", first: int = 0) -> list[dict[str, Any]]:
    """Chat bodies that say "0", "1", … ."""
    return [{"model": model, "messages": [{"role": "user", "content": str(n)}]} for n in range(first, first + count)]


def a_little() -> float:
    """Dice for waits: short ones, so that retries are soon."""
    return random.uniform(0.0, 0.05)  # noqa: S311 - waits, not secrets


@dataclass
class Workshop:
    """A database and an upstream."""

    db: Database
    settings: Settings
    clock: Callable[[], float] = time.time
    hints: Hints = field(default_factory=LocalHints)

    async def batch(
        self, lines: Iterable[dict[str, Any] | bytes], *, folder: Path | None = None, **terms: Any
    ) -> BatchRow:
        """An open batch of these lines, which may name files in the folder."""
        data = b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)
        source = Source(name="prompts.jsonl", chunks=[data], folder=folder)
        taken = await take_in(self.db, self.settings, source, Terms(**terms), clock=self.clock)
        return taken.batch

    def drain(self, batch: BatchRow | None = None, *, clock: Callable[[], float] | None = None, **terms: Any) -> Drain:
        """A drain that ends when its work is done, unless the terms say otherwise."""
        clock = clock or self.clock
        only = None if batch is None else frozenset({batch.id})
        wanted = DrainTerms(**{"worker_name": "test:1", "only_batches": only, "until_done": True, **terms})
        desk = Desk(self.settings, clock=clock, hints=self.hints)
        return Drain(
            self.db, self.settings, desk, MemoryLimiter(clock), wanted, clock=clock, rng=a_little, hints=self.hints
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Drain]:
        """A drain that works on whatever comes until it is stopped, as a server's does."""
        drain, stop = self.drain(until_done=False), asyncio.Event()
        task = asyncio.create_task(drain.run(stop))
        try:
            yield drain
            assert not task.done()
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await task

    async def rewrite(self, batch: BatchRow, *lines: dict[str, Any]) -> None:
        """Put other lines in place of the batch's own, as doors do that check in their own way and settle no form."""
        async with self.db.write() as connection:
            for part, line in enumerate(lines):
                theirs = sa.update(file_parts).where(file_parts.c.file_id == batch.file_id, file_parts.c.part == part)
                await connection.execute(theirs.values(encoding=0, form=None, data=json.dumps(line).encode()))

    async def work(self, batch: BatchRow, *, seconds: float = 30.0, **terms: Any) -> Drain:
        """Work the batch to its end."""
        drain = self.drain(batch, **terms)
        async with asyncio.timeout(seconds):
            await drain.run(asyncio.Event())
        return drain

    async def now(self, batch: BatchRow) -> BatchRow:
        """The batch as it is now."""
        return await batches.get(self.db, batch.id)

    async def results(self, batch: BatchRow) -> list[Result]:
        """In input order."""
        return [result async for result in stream(self.db, batch.id)]

    async def unfinished(self, batch: BatchRow) -> Counter[State]:
        """State → jobs that have no result."""
        async with self.db.read() as connection:
            rows = await connection.execute(sa.select(jobs.c.state).where(jobs.c.batch_id == batch.id))
            return Counter(State(state) for state in rows.scalars())

    async def attempts_so_far(self, batch: BatchRow) -> list[int]:
        """Counted attempts of the jobs that have no result."""
        async with self.db.read() as connection:
            statement = sa.select(jobs.c.attempts).where(jobs.c.batch_id == batch.id).order_by(jobs.c.position)
            return list((await connection.execute(statement)).scalars())

    async def ledger(self, batch: BatchRow) -> Counter[str]:
        """Outcome → upstream calls."""
        async with self.db.read() as connection:
            rows = await connection.execute(sa.select(attempts.c.outcome).where(attempts.c.batch_id == batch.id))
            return Counter(rows.scalars())


def workshop(db: Database, url: str, *, grace_seconds: float = 5.0, max_attempts: int = 6, **upstream: Any) -> Workshop:
    """A workshop with one upstream."""
    config = UpstreamConfig(name="up", url=url, key=KEY, key_source="TEST_KEY", shared_limits=True)
    return Workshop(
        db,
        Settings(
            database_url=db.url.render_as_string(hide_password=False),
            upstreams=(replace(config, **upstream),),
            grace_seconds=grace_seconds,
            max_attempts=max_attempts,
        ),
    )
