"""What time alone brings about, seen to by every drain: retries fall due, deadlines pass, workers die.

All of it is idempotent, so it does no harm when several do it at once; a lease row only saves the work.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import BatchState, State
from promptmill.store import aborts, canary, control, upkeep, workers
from promptmill.store.pauses import is_paused
from promptmill.store.rows import batch_in, in_state
from promptmill.tables import batches, jobs, leases
from promptmill.tables import workers as worker_rows

#: Jobs that others put off fall due within this time of their moment; a drain's own ones at once.
STAGE_SECONDS: Final = 1.0
#: Retries that fall due within this time are made ready together.
STAGE_AT_MOST_EVERY_SECONDS: Final = 0.1
#: Reaping, expiring and finishing what was cancelled, by whoever has the lease.
CHORES_SECONDS: Final = 2.0
#: When nobody did them for so long, it was the database that was away, or the whole machine stood still.
UNWATCHED_SECONDS: Final = 7.0
#: Then each worker has this long to say that it is alive, before silence is taken for death again.
SPEAK_SECONDS: Final = workers.HEARTBEAT_SECONDS + 1.0

_LEASE: Final = "upkeep"
#: Its owner is since when the chores were done without a gap, and its end when they were done last.
_WATCH: Final = "watch"
_WAITING = in_state(State.WAITING)
_RUNNING = in_state(State.RUNNING)


class Upkeep:
    """Keeps the appointments of one drain, and its share of everybody's chores."""

    def __init__(self, db: Database, *, clock: Callable[[], float], owner: str) -> None:
        self._db = db
        self._clock = clock
        self._owner = owner
        self._staged_at = self._chores_at = float("-inf")
        self._expected = float("inf")
        self._cancelling: asyncio.Task[None] | None = None

    def expect(self, due: float) -> None:
        """A job of ours waits until `due`."""
        self._expected = min(self._expected, due)

    def due_in(self) -> float:
        """Seconds until the next appointment."""
        now = self._clock()
        own = max(self._expected - now, self._staged_at + STAGE_AT_MOST_EVERY_SECONDS - now)
        return max(0.0, min(own, self._staged_at + STAGE_SECONDS - now))

    async def if_due(self) -> bool:
        """Do what is due; True when jobs became ready."""
        now = self._clock()
        ready = 0
        since = now - self._staged_at
        if since >= STAGE_SECONDS or (now >= self._expected and since >= STAGE_AT_MOST_EVERY_SECONDS):
            ready += await self._stage(now)
        if now - self._chores_at >= CHORES_SECONDS:
            self._chores_at = now
            if await upkeep.take_lease(self._db, name=_LEASE, owner=self._owner, seconds=CHORES_SECONDS, now=now):
                self._finish_cancelling_aside(now)
                ready += await self._chores(now)
        return ready > 0

    async def do_all(self) -> None:
        """Everything, lease or not."""
        now = self._clock()
        await self._stage(now)
        await self._finish_cancelling(now)
        await self._chores(now)

    async def close(self) -> None:
        """Nothing is done aside any more; what was begun, others go on with."""
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.gather(self._cancelling, return_exceptions=True)

    async def _stage(self, now: float) -> int:
        self._staged_at = now
        self._expected = float("inf")
        ready = await upkeep.stage_due(self._db, now=now)
        ready += await canary.decide(self._db, now=now)
        async with self._db.read() as connection:
            due: float | None = (
                await connection.execute(sa.select(sa.func.min(jobs.c.not_before)).where(_WAITING))
            ).scalar()
        if due is not None:
            self.expect(due)
        return ready

    async def _chores(self, now: float) -> int:
        await upkeep.expire(self._db, now=now)
        if await self._watched_for(now) < SPEAK_SECONDS:
            return 0
        await self._reopen_those_with_jobs(now)
        silent = await workers.silent(self._db, now=now)
        return await workers.reap(self._db, worker_ids=silent, now=now)

    async def finish_what_ended(self) -> None:
        """What is left of cancelled batches and jobs is finished, and canaries that have ended are decided."""
        now = self._clock()
        await self._finish_cancelling(now)
        await canary.decide(self._db, now=now)

    def _finish_cancelling_aside(self, now: float) -> None:
        """A batch of 100,000 takes seconds, and whoever claims must not stand still meanwhile."""
        if self._cancelling is not None and not self._cancelling.done():
            return
        before, self._cancelling = self._cancelling, None
        if before is not None:
            before.result()  # raises what went wrong
        self._cancelling = asyncio.create_task(self._finish_cancelling(now), name="promptmill-cancelling")

    async def _finish_cancelling(self, now: float) -> None:
        for batch_id in await control.cancelling(self._db):
            await control.finish_cancelling(self._db, batch_id=batch_id, now=now)
        await aborts.carry_out(self._db, now=now)

    async def _reopen_those_with_jobs(self, now: float) -> None:
        """Who was taken for dead may claim once more before it notices. If it dies then, it has to be found again."""
        theirs = sa.exists().where(_RUNNING, jobs.c.worker_id == worker_rows.c.id)
        statement = sa.update(worker_rows).where(worker_rows.c.stopped_at < now - workers.LEASE_SECONDS, theirs)
        async with self._db.write() as connection:
            await connection.execute(statement.values(stopped_at=None))

    async def _watched_for(self, now: float) -> float:
        """For how long somebody has looked without a gap: a silence to which nobody could listen proves nothing."""
        async with self._db.write() as connection:
            found = sa.select(leases.c.owner, leases.c.until).where(leases.c.name == _WATCH).with_for_update()
            row = (await connection.execute(found)).one_or_none()
            if row is not None:
                since = float(row.owner) if abs(now - row.until) <= UNWATCHED_SECONDS else now
                statement = sa.update(leases).where(leases.c.name == _WATCH)
                await connection.execute(statement.values(owner=repr(since), until=now))
                return now - since
        await upkeep.take_lease(self._db, name=_WATCH, owner=repr(now), seconds=0, now=now)
        return 0.0

    async def more_to_come(
        self, batch_ids: Collection[int] | None, halted_lanes: Collection[int], *, worker_id: int
    ) -> bool:
        """Will jobs of these batches become ready on a lane that is not halted: waiting ones, those of a batch whose
        time comes, or those that another worker has, which may be dead? What is paused waits for a person."""
        paused = is_paused(batch_id=batches.c.id, lane_id=jobs.c.lane_id, tenant_id=batches.c.tenant_id)
        running = sa.and_(batches.c.finished_at.is_(None), batch_in(BatchState.IN_PROGRESS), sa.not_(paused))
        later = sa.and_(running, batches.c.not_before > self._clock())
        for more in (sa.and_(_WAITING, running), later, sa.and_(_RUNNING, jobs.c.worker_id != worker_id)):
            statement = sa.select(jobs.c.id).join(batches, batches.c.id == jobs.c.batch_id).where(more).limit(1)
            if batch_ids is not None:
                statement = statement.where(self._db.any_of(jobs.c.batch_id, batch_ids))
            if halted_lanes:
                statement = statement.where(sa.not_(self._db.any_of(jobs.c.lane_id, halted_lanes)))
            async with self._db.read() as connection:
                if (await connection.execute(statement)).first() is not None:
                    return True
        return False

    async def lanes_with_more(self, lane_ids: Collection[int], *, within_seconds: float, worker_id: int) -> set[int]:
        """Of these lanes, those on which another worker has calls out, or jobs fall due within this time."""
        soon = sa.and_(_WAITING, jobs.c.not_before <= self._clock() + within_seconds)
        found: set[int] = set()
        async with self._db.read() as connection:
            for more in (soon, sa.and_(_RUNNING, jobs.c.worker_id != worker_id)):
                statement = sa.select(jobs.c.lane_id).where(more, self._db.any_of(jobs.c.lane_id, lane_ids)).distinct()
                found.update((await connection.execute(statement)).scalars())
        return found

    async def give_back_unknown(self, worker_id: int, known: Collection[int]) -> int:
        """Jobs that are this worker's and that it does not know of: the connection broke after their claim's commit."""
        statement = sa.update(jobs).where(jobs.c.worker_id == worker_id, _RUNNING)
        if known:
            statement = statement.where(sa.not_(self._db.any_of(jobs.c.id, known)))
        async with self._db.write() as connection:
            done = await connection.execute(statement.values(state=State.READY, worker_id=None))
            return done.rowcount
