"""What time alone brings about: waiting jobs fall due, deadlines pass. Idempotent; anyone may ask at any time."""

from collections import Counter
from typing import Final

import sqlalchemy as sa

from promptmill.content import PLAIN
from promptmill.engine import Database
from promptmill.job import BatchState, State
from promptmill.store import sums
from promptmill.store.records import close_if_done
from promptmill.store.rows import in_state
from promptmill.tables import batches, jobs, leases, results, workers

_ROWS_AT_ONCE = 5_000
_WORKERS_KEPT_SECONDS = 7 * 86_400.0
_PROGRESS_KEPT_SECONDS = 86_400.0


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
    """ready, waiting → expired, for jobs whose deadline has passed; returns how many. Running ones may make it.

    What a batch says goes before what its jobs say: those of one whose deadline was changed may not know of it yet, or
    never will, since whoever told them has died (`changes.spread_deadline`).
    """
    own = sa.exists().where(batches.c.id == jobs.c.batch_id, sa.or_(batches.c.is_inbox, batches.c.deadline <= now))
    unsent = in_state(State.READY, State.WAITING)
    words = {"code": "batch_expired", "message": _TOO_LATE}
    done = await finish_unsent(db, sa.and_(unsent, jobs.c.deadline <= now, own), State.EXPIRED, now=now, **words)
    over = sa.select(batches.c.id).where(
        batches.c.finished_at.is_(None), batches.c.state == BatchState.IN_PROGRESS, batches.c.deadline <= now
    )
    async with db.read() as connection:
        batch_ids = list((await connection.execute(over)).scalars())
    if batch_ids:
        theirs = sa.and_(unsent, db.any_of(jobs.c.batch_id, batch_ids))
        done += await finish_unsent(db, theirs, State.EXPIRED, now=now, **words)
    return done


_TOO_LATE: Final = "This request could not be executed before the completion window expired."


async def finish_unsent(
    db: Database, which: "sa.ColumnElement[bool]", state: State, *, code: str, message: str, now: float
) -> int:
    """ready, waiting → a finished state, without a call; returns how many. A few thousand at a time: ask again."""
    async with db.write() as connection:
        picked = sa.select(jobs.c.id, jobs.c.batch_id).where(which).order_by(jobs.c.id).limit(_ROWS_AT_ONCE)
        rows = (await connection.execute(picked.with_for_update(skip_locked=True))).all()
        if not rows:
            return 0
        theirs = db.any_of(jobs.c.id, [row.id for row in rows])
        kept = ["batch_id", "position", "lane_id", "file_id", "part", "epoch", "attempts"]
        given = {
            "state": state.value, "finished_at": now, "error_code": code, "error_message": message,
            "prompt_tokens": 0, "completion_tokens": 0, "reasoning_tokens": 0, "cached_tokens": 0, "encoding": PLAIN,
        }  # fmt: skip
        source = sa.select(
            jobs.c.id, *(jobs.c[name] for name in kept), *(sa.literal(value) for value in given.values())
        ).where(theirs)
        touched = sorted(Counter(row.batch_id for row in rows).items())
        for batch_id, count in touched:  # before the results are inserted: see `records`
            moved = sa.update(batches).where(batches.c.id == batch_id)
            await connection.execute(moved.values({state.value: batches.c[state.value] + count}))
        await connection.execute(sa.insert(results).from_select(["job_id", *kept, *given], source))
        await connection.execute(sa.delete(jobs).where(theirs))
        for batch_id, _ in touched:
            await close_if_done(connection, batch_id, now)
        return len(rows)


async def purge(db: Database, *, now: float) -> int:
    """Forget workers that stopped more than a week ago, and what lanes did before yesterday; returns how many workers.
    What they did stays in the ledger."""
    await sums.forget_progress(db, before=now - _PROGRESS_KEPT_SECONDS)
    async with db.write() as connection:
        gone = await connection.execute(sa.delete(workers).where(workers.c.stopped_at < now - _WORKERS_KEPT_SECONDS))
        return gone.rowcount


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
