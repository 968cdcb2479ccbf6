"""What becomes of the fires that were decided: held while their batch is made, and kept as the schedule's history.

One process at a time holds a due fire, for as long as it says so now and then, as it is with batches that are read in
(`admissions`). Whoever lost it writes nothing more.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.errors import LineError, NotFound
from promptmill.job import BatchState
from promptmill.store.admissions import HELD_SECONDS, RUN_KEY, Lost
from promptmill.store.schedules import OPEN, FireState
from promptmill.tables import batches, schedule_fires, schedules

__all__ = ["HELD_SECONDS", "RUN_KEY", "FireRow", "Lost"]

#: Fires that are looked up together.
_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class FireRow:
    """A fire as the database has it, and what is known of its batch."""

    id: int
    schedule_id: int
    at: float
    number: int | None
    previous_at: float | None
    is_manual: bool
    state: FireState
    batch_id: int | None
    reason: str | None
    decided_at: float
    carried_out_at: float | None
    batch_public_id: str | None
    batch_state: BatchState | None
    batch_errors: str | None  # JSON, as `batches.errors`

    @property
    def why(self) -> str | None:
        """Why it was left out or failed, or why its batch did before anything was sent."""
        if self.batch_state is not BatchState.FAILED or not self.batch_errors:
            return self.reason
        first, *more = msgspec.json.decode(self.batch_errors, type=list[LineError])
        return f"{first}" + (f"; and {len(more):,} more" if more else "")


_OWN: Final = (
    "id", "schedule_id", "at", "number", "previous_at", "is_manual", "state", "batch_id", "reason", "decided_at",
    "carried_out_at",
)  # fmt: skip
_ROWS: Final = sa.select(
    *(schedule_fires.c[name] for name in _OWN),
    batches.c.public_id.label("batch_public_id"),
    batches.c.state.label("batch_state"),
    batches.c.errors.label("batch_errors"),
).outerjoin(batches, batches.c.id == schedule_fires.c.batch_id)


def _row(row: Any) -> FireRow:
    values = row._asdict()
    batch_state = values["batch_state"]
    states = {"state": FireState(values["state"]), "batch_state": batch_state and BatchState(batch_state)}
    return FireRow(**{**values, **states})


async def get(db: Database, fire_id: int) -> FireRow:
    """One fire. Raises NotFound."""
    async with db.read() as connection:
        row = (await connection.execute(_ROWS.where(schedule_fires.c.id == fire_id))).first()
    if row is None:
        raise NotFound(f"no fire {fire_id}")
    return _row(row)


async def history(
    db: Database, schedule_id: int, *, below: float | None = None, limit: int | None = None
) -> list[FireRow]:
    """The schedule's fires, the latest first; those whose nominal time lies before `below`."""
    statement = _ROWS.where(schedule_fires.c.schedule_id == schedule_id)
    if below is not None:
        statement = statement.where(schedule_fires.c.at < below)
    async with db.read() as connection:
        rows = await connection.execute(statement.order_by(schedule_fires.c.at.desc()).limit(limit))
        return [_row(row) for row in rows]


async def latest(db: Database, schedule_ids: list[int]) -> dict[int, float]:
    """Schedule id → the nominal time of its latest fire, of those that have a number."""
    # One row of the index for each: a schedule may have half a million fires.
    last = (
        sa.select(schedule_fires.c.at)
        .where(schedule_fires.c.schedule_id == schedules.c.id, schedule_fires.c.number.is_not(None))
        .order_by(schedule_fires.c.at.desc())
        .limit(1)
        .scalar_subquery()
    )
    statement = sa.select(schedules.c.id, last).where(db.any_of(schedules.c.id, schedule_ids))
    async with db.read() as connection:
        return {row[0]: row[1] for row in await connection.execute(statement) if row[1] is not None}


async def left(db: Database, *, now: float) -> list[int]:
    """Due fires that nobody holds: of each schedule the oldest, then of each the next one, and so on; so one that has
    much to make up for does not keep the others waiting."""
    async with db.read() as connection:
        return list((await connection.execute(free(now))).scalars())


def free(now: float) -> "sa.Select[int]":
    """The same as a statement."""
    nobody = sa.func.coalesce(schedule_fires.c.holder_until, 0.0) <= now
    place = sa.func.row_number().over(partition_by=schedule_fires.c.schedule_id, order_by=schedule_fires.c.at)
    due = sa.select(schedule_fires.c.id, schedule_fires.c.at, place.label("place"))
    due_now = due.where(OPEN, schedule_fires.c.state == FireState.DUE, nobody).subquery()
    return sa.select(due_now.c.id).order_by(due_now.c.place, due_now.c.at).limit(_AT_ONCE)


async def take(db: Database, *, fire_id: int, holder: str, now: float) -> bool:
    """Hold the fire from now on, where it is due and nobody else does."""
    free = sa.func.coalesce(schedule_fires.c.holder_until, 0.0) <= now
    mine = sa.update(schedule_fires).where(
        schedule_fires.c.id == fire_id, schedule_fires.c.state == FireState.DUE,
        sa.or_(free, schedule_fires.c.holder == holder),
    )  # fmt: skip
    async with db.write() as connection:
        taken = await connection.execute(mine.values(holder=holder, holder_until=now + HELD_SECONDS))
        return taken.rowcount > 0


async def hold(connection: AsyncConnection, *, fire_id: int, holder: str, now: float) -> None:
    """Go on holding it; until the transaction ends nobody can take it. Raises Lost."""
    await _move(connection, fire_id, holder, {"holder_until": now + HELD_SECONDS})


async def fired(connection: AsyncConnection, *, fire_id: int, holder: str, batch_id: int, now: float) -> None:
    """due → fired: `batch_id`, made in this transaction, is its batch. Raises Lost."""
    values = {"state": FireState.FIRED, "batch_id": batch_id, "carried_out_at": now, "holder_until": None}
    await _move(connection, fire_id, holder, values)


async def failed(db: Database, *, fire_id: int, holder: str, reason: str, now: float) -> None:
    """due → failed: no batch can be made of it. Raises Lost."""
    async with db.write() as connection:
        values = {"state": FireState.FAILED, "reason": reason, "carried_out_at": now, "holder_until": None}
        await _move(connection, fire_id, holder, values)


async def release(db: Database, *, holder: str) -> None:
    """Somebody else may go on at once with whatever `holder` has."""
    async with db.write() as connection:
        mine = sa.update(schedule_fires).where(
            OPEN, schedule_fires.c.state == FireState.DUE, schedule_fires.c.holder == holder
        )
        await connection.execute(mine.values(holder=None, holder_until=0.0))


async def _move(connection: AsyncConnection, fire_id: int, holder: str, values: dict[str, Any]) -> None:
    mine = sa.update(schedule_fires).where(
        schedule_fires.c.id == fire_id, schedule_fires.c.state == FireState.DUE, schedule_fires.c.holder == holder
    )
    if not (await connection.execute(mine.values(values))).rowcount:
        raise Lost
