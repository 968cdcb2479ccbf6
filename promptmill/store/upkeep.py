"""What time alone brings about: waiting jobs fall due, deadlines pass. Idempotent; anyone may ask at any time."""

import sqlalchemy as sa

from promptmill.content import PLAIN
from promptmill.engine import Database
from promptmill.job import State
from promptmill.store.records import close_if_done
from promptmill.store.rows import in_state
from promptmill.tables import batches, jobs, leases, results

_ROWS_AT_ONCE = 5_000


async def stage_due(db: Database, *, now: float) -> int:
    """waiting → ready, for jobs whose time has come; returns how many."""
    due = sa.and_(in_state(State.WAITING), jobs.c.not_before <= now)
    async with db.write() as connection:
        picked = sa.select(jobs.c.id).where(due).order_by(jobs.c.id).limit(_ROWS_AT_ONCE)
        ids = list((await connection.execute(picked.with_for_update(skip_locked=True))).scalars())
        if ids:
            statement = sa.update(jobs).where(db.any_of(jobs.c.id, ids))
            await connection.execute(statement.values(state=State.READY, not_before=None))
    return len(ids)


async def expire(db: Database, *, now: float) -> int:
    """ready, waiting → expired, for jobs whose deadline has passed; returns how many. Running ones may make it."""
    late = sa.and_(in_state(State.READY, State.WAITING), jobs.c.deadline <= now)
    async with db.write() as connection:
        picked = sa.select(jobs).where(late).order_by(jobs.c.id).limit(_ROWS_AT_ONCE).with_for_update(skip_locked=True)
        rows = (await connection.execute(picked)).all()
        if not rows:
            return 0
        await connection.execute(sa.delete(jobs).where(db.any_of(jobs.c.id, [row.id for row in rows])))
        await connection.execute(
            sa.insert(results),
            [
                {
                    "batch_id": row.batch_id, "position": row.position, "job_id": row.id, "lane_id": row.lane_id,
                    "file_id": row.file_id, "part": row.part, "state": State.EXPIRED.value, "epoch": row.epoch,
                    "attempts": row.attempts, "finished_at": now, "error_code": "batch_expired",
                    "error_message": "This request could not be executed before the completion window expired.",
                    "prompt_tokens": 0, "completion_tokens": 0, "reasoning_tokens": 0, "cached_tokens": 0,
                    "encoding": PLAIN,
                }
                for row in rows
            ],
        )  # fmt: skip
        for batch_id in sorted({row.batch_id for row in rows}):
            count = sum(row.batch_id == batch_id for row in rows)
            moved = sa.update(batches).where(batches.c.id == batch_id)
            await connection.execute(moved.values(expired=batches.c.expired + count))
            await close_if_done(connection, batch_id, now)
        return len(rows)


async def take_lease(db: Database, *, name: str, owner: str, seconds: float, now: float) -> bool:
    """May `owner` do the chore `name` now? Then nobody else may for `seconds`."""
    async with db.write() as connection:
        row = (
            await connection.execute(sa.select(leases.c.until).where(leases.c.name == name).with_for_update())
        ).one_or_none()
        if row is None:
            try:
                async with connection.begin_nested():
                    await connection.execute(sa.insert(leases).values(name=name, owner=owner, until=now + seconds))
            except sa.exc.IntegrityError:
                return False  # another process was first
            return True
        if row.until > now:
            return False
        statement = sa.update(leases).where(leases.c.name == name)
        await connection.execute(statement.values(owner=owner, until=now + seconds))
        return True
