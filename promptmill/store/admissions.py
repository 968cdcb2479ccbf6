"""A batch of an uploaded file while its lines are checked: who does it, and what is taken back when it goes wrong.

One process at a time holds such a batch, for as long as it says so now and then. Whatever it writes is conditional on
holding it still: who lost it (its process stood still, the batch was cancelled) writes nothing more. A batch that
nobody holds is taken over and begun anew; but where a command reads the lines from its own input, nobody else can, and
what is left of it is removed when somebody cancels it.
"""

from collections.abc import AsyncIterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.job import BatchState
from promptmill.store.pauses import What, forget_in
from promptmill.store.rows import batch_in, last_within
from promptmill.tables import batch_lanes, batches, file_parts, jobs, results

#: Who says nothing for so long has lost the batch.
HELD_SECONDS: Final = 20.0

#: What the names of holders begin with that are commands.
COMMAND: Final = "command:"

#: What the run keys of batches begin with that a schedule made.
RUN_KEY: Final = "fire:"

#: Read and written together.
LINES_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
#: Taken back together.
_ROWS_AT_ONCE: Final = 5_000


class Lost(Exception):  # noqa: N818 - a fact: somebody else has the batch now
    """The batch is not held any more; whatever was to be written was not."""


#: What a command makes of a file is read in by itself, and is not anybody's to take over.
_ANYBODYS: Final = sa.and_(
    sa.or_(batches.c.dialect.is_not(None), batches.c.validator_until.is_not(None)),
    sa.not_(sa.func.coalesce(batches.c.validator, "").startswith(COMMAND)),
)


async def left(db: Database, *, now: float, made_by_schedules: bool = False) -> list[int]:
    """Batches that nobody holds, the oldest first; `made_by_schedules`: only such ones."""
    async with db.read() as connection:
        return list((await connection.execute(free(now, made_by_schedules=made_by_schedules))).scalars())


def free(now: float, *, made_by_schedules: bool = False) -> "sa.Select[int]":
    """The same as a statement."""
    statement = sa.select(batches.c.id).where(
        batches.c.finished_at.is_(None), batch_in(BatchState.VALIDATING), _ANYBODYS,
        sa.func.coalesce(batches.c.validator_until, 0.0) <= now,
    )  # fmt: skip
    if made_by_schedules:
        statement = statement.where(batches.c.run_key.startswith(RUN_KEY))
    return statement.order_by(batches.c.id)


async def take(db: Database, *, batch_id: int, holder: str, now: float) -> bool:
    """Hold the batch from now on, where nobody else does."""
    free = sa.func.coalesce(batches.c.validator_until, 0.0) <= now
    mine = sa.update(batches).where(
        batches.c.id == batch_id, batch_in(BatchState.VALIDATING), sa.or_(free, batches.c.validator == holder)
    )
    async with db.write() as connection:
        taken = await connection.execute(mine.values(validator=holder, validator_until=now + HELD_SECONDS))
        return taken.rowcount > 0


async def hold(connection: AsyncConnection, *, batch_id: int, holder: str, now: float) -> None:
    """Go on holding it; until the transaction ends nobody can take it. Raises Lost."""
    mine = sa.update(batches).where(
        batches.c.id == batch_id, batch_in(BatchState.VALIDATING), batches.c.validator == holder
    )
    held = await connection.execute(mine.values(validator_until=now + HELD_SECONDS))
    if not held.rowcount:
        raise Lost


async def release(db: Database, *, batch_id: int, holder: str) -> None:
    """Somebody else may go on at once."""
    async with db.write() as connection:
        mine = sa.update(batches).where(batches.c.id == batch_id, batches.c.validator == holder)
        await connection.execute(mine.values(validator=None, validator_until=0.0))


async def release_all(db: Database, *, holder: str) -> None:
    """The same for whatever `holder` has."""
    async with db.write() as connection:
        mine = sa.update(batches).where(
            batches.c.finished_at.is_(None), batch_in(BatchState.VALIDATING), batches.c.validator == holder
        )
        await connection.execute(mine.values(validator=None, validator_until=0.0))


async def lines(db: Database, file_id: int) -> AsyncIterator[list[tuple[int, int, int, bytes]]]:
    """(part, line number, encoding, data) of an uploaded file's lines, in groups that are small together: their sizes
    are asked for first. Unpack them one by one."""
    sizes = (
        sa.select(file_parts.c.part, sa.func.length(file_parts.c.data))
        .where(file_parts.c.file_id == file_id, file_parts.c.part > sa.bindparam("after"))
        .order_by(file_parts.c.part)
        .limit(LINES_AT_ONCE)
    )
    content = (
        sa.select(file_parts.c.part, file_parts.c.line, file_parts.c.encoding, file_parts.c.data)
        .where(file_parts.c.file_id == file_id)
        .where(file_parts.c.part > sa.bindparam("after"), file_parts.c.part <= sa.bindparam("last"))
        .order_by(file_parts.c.part)
    )
    after = -1
    while True:
        async with db.read() as connection:
            found = (await connection.execute(sizes, {"after": after})).all()
            if not found:
                return
            last = last_within([(part, size) for part, size in found], BYTES_AT_ONCE)
            rows = (await connection.execute(content, {"after": after, "last": last})).all()
        yield [(part, line, encoding, data) for part, line, encoding, data in rows]
        after = last


async def take_back(db: Database, *, batch_id: int, holder: str, now: float) -> bool:
    """Remove jobs of the batch, some thousand; False when none was left. Raises Lost."""
    async with db.write() as connection:
        # Jobs are locked before their batch, as everywhere (see `records`).
        picked = sa.select(jobs.c.id).where(jobs.c.batch_id == batch_id).order_by(jobs.c.id).limit(_ROWS_AT_ONCE)
        ids = list((await connection.execute(picked.with_for_update())).scalars())
        await hold(connection, batch_id=batch_id, holder=holder, now=now)
        if ids:
            await connection.execute(sa.delete(jobs).where(db.any_of(jobs.c.id, ids)))
            return True
        counts = dict.fromkeys(("total", "succeeded", "failed", "cancelled", "expired", "invalid"), 0)
        await connection.execute(sa.delete(results).where(results.c.batch_id == batch_id))  # whose deadline passed
        await connection.execute(sa.delete(batch_lanes).where(batch_lanes.c.batch_id == batch_id))
        await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(counts))
        return False


async def end(db: Database, *, batch_id: int, holder: str, state: BatchState, errors: str | None, now: float) -> None:
    """validating → failed or cancelled, once its jobs were taken back. Raises Lost."""
    async with db.write() as connection:
        await hold(connection, batch_id=batch_id, holder=holder, now=now)
        ended = {"state": state, "errors": errors, "finished_at": now, "is_open": False, "validator_until": None}
        await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(ended))
        await forget_in(connection, What.BATCH, batch_id)


async def stop(db: Database, *, batch_id: int, now: float) -> bool:
    """Somebody asks that it be cancelled: whoever holds it loses it. False when it is not validating any more, or is
    read in by a command."""
    async with db.write() as connection:
        theirs = sa.update(batches).where(batches.c.id == batch_id, batch_in(BatchState.VALIDATING), _ANYBODYS)
        asked = {"cancelling_at": now, "validator": None, "validator_until": 0.0}
        return (await connection.execute(theirs.values(asked))).rowcount > 0
