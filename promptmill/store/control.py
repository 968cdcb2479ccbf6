"""What somebody may say to a batch while it is unfinished: pause it, go on, stop.

Everything takes effect with the commit: whoever claims looks at the rows that are written here. A batch's pause goes
with its end, in the same transaction, so that none is left behind.
"""

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import NotNow
from promptmill.job import BATCH_FINISHED, BatchState, State
from promptmill.store import pauses
from promptmill.store.batches import locked, refuse_left
from promptmill.store.pauses import What
from promptmill.store.records import close_if_done
from promptmill.store.rows import batch_in, in_state
from promptmill.store.upkeep import finish_unsent
from promptmill.tables import batches, jobs


async def pause(db: Database, *, batch_id: int, now: float) -> bool:
    """No job of the batch is started any more until it is resumed; False when it was paused before.

    Raises NotNow for one that has ended or is being cancelled, or that nobody reads in any more.
    """
    async with db.write() as connection:
        batch = await locked(connection, batch_id)
        refuse_left(batch, now)
        if batch.state in BATCH_FINISHED or batch.state is BatchState.CANCELLING:
            raise NotNow(f"{batch.public_id} is {batch.state.value}; only a batch that is to go on can be paused")
        return await pauses.pause_in(connection, What.BATCH, batch_id, now=now)


async def resume(db: Database, *, batch_id: int, now: float) -> bool:
    """It may go on, whoever paused it; False when it was not paused."""
    return await pauses.resume(db, What.BATCH, batch_id, now=now)


async def cancel(db: Database, *, batch_id: int, abort: bool = False, now: float) -> bool:
    """in_progress → cancelling: no further claim, at once. False when the batch was not running.

    What is ready or waiting becomes a cancelled result by `finish_cancelling`. What is running ends and is kept; with
    `abort` its calls are broken off, and that may also be asked of a batch that is cancelling already.
    """
    theirs = sa.update(batches).where(batches.c.id == batch_id)
    running = theirs.where(batch_in(BatchState.IN_PROGRESS))
    ends = {"state": BatchState.CANCELLING, "cancelling_at": now, "is_open": False, "aborts_calls": abort}
    async with db.write() as connection:
        if (await connection.execute(running.values(ends))).rowcount:
            await pauses.forget_in(connection, What.BATCH, batch_id)  # nothing of it is started anyway
            return True
        ending = theirs.where(batch_in(BatchState.CANCELLING))
        aborts = sa.or_(batches.c.aborts_calls, sa.literal(abort))
        return (await connection.execute(ending.values(aborts_calls=aborts))).rowcount > 0


async def under_way(db: Database, *, batch_id: int) -> int:
    """Calls of the batch that are out."""
    # `+ 0`: what runs is little, the batch may have a million jobs; so the index of the first is to be used.
    theirs = sa.and_(in_state(State.RUNNING), jobs.c.batch_id + 0 == batch_id)
    async with db.read() as connection:
        return int((await connection.execute(sa.select(sa.func.count()).where(theirs))).scalar_one())


async def cancelling(db: Database) -> list[int]:
    """Batches that are on their way to cancelled."""
    async with db.read() as connection:
        statement = sa.select(batches.c.id).where(batch_in(BatchState.CANCELLING), batches.c.finished_at.is_(None))
        return list((await connection.execute(statement.order_by(batches.c.id))).scalars())


async def finish_cancelling(db: Database, *, batch_id: int, now: float) -> int:
    """ready, waiting → cancelled for all jobs of a batch, as long as it is cancelling; returns how many."""
    # Asked with each step: meanwhile it may have ended, and been started again (retry).
    still = sa.exists().where(batches.c.id == batch_id, batch_in(BatchState.CANCELLING))
    theirs = sa.and_(jobs.c.batch_id == batch_id, in_state(State.READY, State.WAITING), still)
    total = 0
    while done := await finish_unsent(
        db, theirs, State.CANCELLED, code="batch_cancelled", message="The batch was cancelled.", now=now
    ):
        total += done
    async with db.write() as connection:
        await close_if_done(connection, batch_id, now)  # nothing may have been left to move
    return total
