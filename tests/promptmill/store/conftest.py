"""Builders that fit the state: a batch with jobs on a lane, and what a worker makes of them."""

from dataclasses import dataclass

import pytest

from promptmill.engine import Database
from promptmill.job import State
from promptmill.outcome import Answer, Failure, Reason, Usage
from promptmill.store import batches, claims, files, lanes, records, workers
from promptmill.store.batches import BatchRow, NewBatch
from promptmill.store.claims import Claimed
from promptmill.store.records import Ending
from promptmill.tables import file_parts, jobs


@dataclass
class Mill:
    """A database with short words for what tests do to it."""

    db: Database
    clock: object

    async def batch(self, count: int, *, model: str = "m", bytes_each: int = 100, **terms) -> BatchRow:
        file_id = await files.create(self.db, filename="t.jsonl", purpose="batch", now=self.clock())
        new = NewBatch(file_id=file_id, source="t.jsonl", defaults="{}", **terms)
        batch = await batches.create(self.db, new, now=self.clock())
        lane_id = await lanes.ensure(self.db, "up", model)
        columns = ("batch_id", "position", "lane_id", "file_id", "part", "state", "epoch", "attempts", "deadline",
                   "bytes", "tokens")  # fmt: skip
        rows = [
            (batch.id, i, lane_id, file_id, i, "ready", 0, 0, terms.get("deadline"), bytes_each, 10)
            for i in range(count)
        ]
        parts = [(file_id, i, i + 1, f"c{i}", "bare", 0, b'{"n":%d}\n' % i) for i in range(count)]
        async with self.db.write() as connection:
            await self.db.insert(connection, file_parts, files.PART_COLUMNS, parts)
            await self.db.insert(connection, jobs, columns, rows)
        await batches.open_(self.db, batch_id=batch.id, jobs_by_lane={lane_id: count}, invalid=0, now=self.clock())
        return await batches.get(self.db, batch.id)

    async def worker(self, name: str = "w") -> int:
        return await workers.register(self.db, name=name, now=self.clock())

    async def claim(self, worker_id: int, batch: BatchRow, count: int, *, max_bytes: int = 1 << 30) -> list[Claimed]:
        (lane_id,) = await batches.lane_names(self.db, batch.id)
        return await claims.claim(
            self.db, worker_id=worker_id, lane_id=lane_id, shares=[(batch.id, count)], max_bytes=max_bytes
        )

    async def record(self, worker_id: int, *endings: Ending) -> int:
        return await records.record(self.db, worker_id=worker_id, endings=endings, now=self.clock())

    def answered(self, job: Claimed, body: bytes = b'{"ok":1}') -> Ending:
        answer = Answer(200, "application/json", body, Usage(10, 5, 3, 2), "req-1")
        now = self.clock()
        return Ending(job, State.SUCCEEDED, answer, job.attempts + 1, now, now - 1.5)

    def failed(self, job: Claimed) -> Ending:
        failure = Failure(Reason.REJECTED, "no \0 good", 400, "application/json", b'{"error":{}}')
        now = self.clock()
        return Ending(job, State.FAILED, failure, job.attempts + 1, now, now - 1)

    def retried(self, job: Claimed, in_seconds: float) -> Ending:
        now = self.clock()
        failure = Failure(Reason.SERVER_ERROR, "try again", 500)
        return Ending(job, State.WAITING, failure, job.attempts + 1, now, now - 1, now + in_seconds)

    def given_back(self, job: Claimed) -> Ending:
        return Ending(job, State.READY, Failure(Reason.STOPPED, "stopped"), job.attempts, self.clock(), self.clock())


@pytest.fixture
def mill(db, clock) -> Mill:
    return Mill(db, clock)
