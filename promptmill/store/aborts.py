"""Single jobs that are stopped; and calls under way that somebody wants broken off, of batches that are cancelled so
and of single jobs.

What is asked of a job stays asked until that job has ended, wherever it goes meanwhile: back to a worker that claims it
at once, into the wait for its next try, out of the hands of a worker that died.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.hints import JobKey
from promptmill.job import BatchState, State
from promptmill.store.rows import batch_in, in_state
from promptmill.store.upkeep import finish_unsent
from promptmill.tables import aborts, batches, jobs

#: What a single job that was cancelled has for its error.
CODE: Final = "job_cancelled"
MESSAGE: Final = "This job was cancelled before it was answered."

_BATCHES: Final = sa.select(batches.c.id).where(
    batches.c.finished_at.is_(None), batch_in(BatchState.CANCELLING), batches.c.aborts_calls
)
_UNSENT: Final = in_state(State.READY, State.WAITING)


@dataclass(frozen=True, slots=True)
class Aborting:
    """Whose calls are to be broken off."""

    batch_ids: frozenset[int] = frozenset()
    job_ids: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.batch_ids or self.job_ids)


async def aborting(db: Database) -> Aborting:
    """All that was asked and has not ended."""
    async with db.read() as connection:
        of_batches = frozenset((await connection.execute(_BATCHES)).scalars())
        return Aborting(of_batches, frozenset((await connection.execute(sa.select(aborts.c.job_id))).scalars()))


class Stopped(Enum):
    """What came of stopping a job."""

    DONE = auto()  # it is cancelled
    ASKED = auto()  # its call is being broken off
    NOT = auto()  # it has ended, or its call is out and is kept


async def stop(db: Database, key: JobKey, *, abort: bool, now: float) -> Stopped:
    """Cancel a job that is not sent; with `abort` break off its call, where that is out."""
    theirs = sa.and_(jobs.c.batch_id == key[0], jobs.c.position == key[1])
    if await cancel_unsent(db, theirs, now=now):
        return Stopped.DONE
    if abort and await ask(db, key, now=now):
        return Stopped.ASKED
    # It may have been given back since it was looked at.
    return Stopped.DONE if abort and await cancel_unsent(db, theirs, now=now) else Stopped.NOT


async def ask(db: Database, key: JobKey, *, now: float) -> bool:
    """The job's call is to be broken off. False when none is out."""
    theirs = sa.select(jobs.c.id).where(in_state(State.RUNNING), jobs.c.batch_id == key[0], jobs.c.position == key[1])
    async with db.write() as connection:
        job_id = (await connection.execute(theirs.with_for_update())).scalar()
        if job_id is None:
            return False
        known = sa.select(aborts.c.job_id).where(aborts.c.job_id == job_id)
        if (await connection.execute(known)).scalar() is None:  # whoever else asks waits for the job's row
            await connection.execute(sa.insert(aborts).values(job_id=job_id, asked_at=now))
        return True


async def carry_out(db: Database, *, now: float) -> None:
    """Jobs whose call was to be broken off, and that are not out any more, are cancelled; of those that have ended
    nothing is remembered."""
    wanted = sa.select(aborts.c.job_id)
    async with db.read() as connection:
        asked = list((await connection.execute(wanted)).scalars())
    if not asked:
        return
    await cancel_unsent(db, db.any_of(jobs.c.id, asked), now=now)
    ended = sa.not_(sa.exists().where(jobs.c.id == aborts.c.job_id))
    async with db.write() as connection:
        await connection.execute(sa.delete(aborts).where(db.any_of(aborts.c.job_id, asked), ended))


async def cancel_unsent(db: Database, which: "sa.ColumnElement[bool]", *, now: float) -> int:
    """ready, waiting → cancelled, for single jobs; returns how many."""
    return await finish_unsent(db, sa.and_(which, _UNSENT), State.CANCELLED, code=CODE, message=MESSAGE, now=now)


async def forget_in(connection: AsyncConnection, db: Database, job_ids: Iterable[int]) -> None:
    """These jobs are tried again: what was asked of them before is over."""
    await connection.execute(sa.delete(aborts).where(db.any_of(aborts.c.job_id, job_ids)))
