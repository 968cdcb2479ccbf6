"""Who is alive. A worker's heartbeat is the lease of all jobs in its hands: no job has a processing time-out.

When a heartbeat stops for LEASE_SECONDS, any other process may give that worker's jobs back. A worker that was only
frozen finds, when it wakes, that its writes match nothing (see `records`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import State
from promptmill.outcome import Reason
from promptmill.store import sums
from promptmill.store.rows import in_state
from promptmill.tables import attempts, jobs, workers

HEARTBEAT_SECONDS = 5.0
#: Three missed heartbeats, less a little: jobs of a dead worker run again within three.
LEASE_SECONDS = 12.5
#: What a worker says of a lane with jobs whose upstream it does not know.
NOT_CONFIGURED: Final = "not_configured"


@dataclass(frozen=True, slots=True)
class AtWork:
    """Those that are alive."""

    since: float | None  # when the oldest of them began; None: there is none
    #: Lanes with jobs for which none of them knows the upstream.
    not_served: frozenset[int]


async def register(db: Database, *, name: str, now: float) -> int:
    """A new worker; returns its id. Ids are never used twice."""
    async with db.write() as connection:
        statement = sa.insert(workers).values(name=name, started_at=now, heartbeat_at=now).returning(workers.c.id)
        return int((await connection.execute(statement)).scalar_one())


async def heartbeat(
    db: Database, *, worker_id: int, in_flight: int, now: float, waiting_for: Mapping[int, str] | None = None
) -> bool:
    """Prolong the lease. False: this worker was declared dead, and must go on under a new id.

    `waiting_for` says, for lanes on which no more calls could start, what keeps them, for people to see.
    """
    async with db.write() as connection:
        done = await connection.execute(
            sa.update(workers)
            .where(workers.c.id == worker_id, workers.c.stopped_at.is_(None))
            .values(heartbeat_at=now, in_flight=in_flight, waiting_for=json.dumps(waiting_for) if waiting_for else None)
        )
        return done.rowcount > 0


async def stopped(db: Database, *, worker_id: int, now: float) -> None:
    """An orderly end: nothing is left in its hands."""
    async with db.write() as connection:
        statement = sa.update(workers).where(workers.c.id == worker_id)
        await connection.execute(statement.values(stopped_at=now, in_flight=0, waiting_for=None))


async def alive(db: Database, *, now: float, lease_seconds: float = LEASE_SECONDS) -> int:
    """How many workers there are."""
    async with db.read() as connection:
        statement = sa.select(sa.func.count()).select_from(workers)
        statement = statement.where(workers.c.stopped_at.is_(None), workers.c.heartbeat_at >= now - lease_seconds)
        return int((await connection.execute(statement)).scalar_one())


async def at_work(db: Database, *, now: float) -> AtWork:
    """What those that are alive say."""
    statement = sa.select(workers.c.started_at, workers.c.waiting_for).where(
        workers.c.stopped_at.is_(None), workers.c.heartbeat_at >= now - LEASE_SECONDS
    )
    async with db.read() as connection:
        rows = (await connection.execute(statement)).all()
    unknown = [_not_configured(row.waiting_for) for row in rows]
    return AtWork(
        min((row.started_at for row in rows), default=None),
        frozenset.intersection(*unknown) if unknown else frozenset(),
    )


def _not_configured(waiting_for: str | None) -> frozenset[int]:
    waits: dict[str, str] = json.loads(waiting_for) if waiting_for else {}
    return frozenset(int(lane_id) for lane_id, cause in waits.items() if cause == NOT_CONFIGURED)


async def silent(db: Database, *, now: float, lease_seconds: float = LEASE_SECONDS) -> list[int]:
    """Workers that neither stopped nor gave a sign of life for `lease_seconds`."""
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(workers.c.id)
            .where(workers.c.stopped_at.is_(None), workers.c.heartbeat_at < now - lease_seconds)
            .order_by(workers.c.id)
        )
        return list(rows.scalars())


async def reap(db: Database, *, worker_ids: Sequence[int], now: float, lease_seconds: float = LEASE_SECONDS) -> int:
    """Give the jobs of dead workers back; returns how many. The attempt does not count against the job.

    Each call that was out gets its row in the ledger: it may have been answered and paid for. A worker whose heart
    beat again since `silent` looked is left alone.
    """
    reaped = 0
    for worker_id in worker_ids:
        async with db.write() as connection:
            dead = await connection.execute(
                sa.update(workers)
                .where(workers.c.id == worker_id, workers.c.stopped_at.is_(None))
                .where(workers.c.heartbeat_at <= now - lease_seconds)
                .values(stopped_at=now, in_flight=0, waiting_for=None)
            )
            if not dead.rowcount:
                continue
            theirs = sa.and_(jobs.c.worker_id == worker_id, in_state(State.RUNNING))
            found = sa.select(jobs.c.lane_id).where(theirs).order_by(jobs.c.id).with_for_update()
            lane_ids = list((await connection.execute(found)).scalars())
            if not lane_ids:
                continue
            # Who starts has to reap first: no row of the ledger, whatever is wrong with it, may keep it from that.
            known = sa.exists().where(attempts.c.job_id == jobs.c.id, attempts.c.epoch == jobs.c.epoch)
            lost = sa.select(
                jobs.c.id,
                jobs.c.epoch,
                jobs.c.batch_id,
                jobs.c.worker_id,
                sa.literal(Reason.WORKER_LOST.value),
                sa.false(),
                sa.literal(0),
                sa.literal(0),
            ).where(theirs, sa.not_(known))
            columns = [
                "job_id", "epoch", "batch_id", "worker_id", "outcome", "counted", "prompt_tokens", "completion_tokens",
            ]  # fmt: skip
            await connection.execute(sa.insert(attempts).from_select(columns, lost))
            done = await connection.execute(sa.update(jobs).where(theirs).values(state=State.READY, worker_id=None))
            calls = [sums.CallMade(lane_id, Reason.WORKER_LOST.value, False, 0.0) for lane_id in lane_ids]
            await sums.add(db, connection, calls)
            reaped += done.rowcount
    return reaped
