"""What somebody stopped for a while: a batch, a lane, a tenant, everything. While it lasts no call of it is started;
calls that are out end and are kept. Drains leave it out where they look for work (`active.active`).

When a pause is over it is known for a while from when to when it was, for foresight.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.tables import batches, lanes, past_pauses, pauses, tenants


class What(StrEnum):
    """What can be paused."""

    BATCH = "batch"
    LANE = "lane"
    TENANT = "tenant"
    #: Its number is EVERYTHING.
    ALL = "all"


EVERYTHING: Final = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """One of them. `reason` is promptmill's own, where it paused by itself (a canary, a budget)."""

    what: What
    id: int
    since: float
    reason: str | None


async def pause(db: Database, what: What, id_: int = EVERYTHING, *, now: float, reason: str | None = None) -> bool:
    """From now on nothing of it is started; False when it was paused before (and keeps its reason)."""
    async with db.write() as connection:
        return await pause_in(connection, what, id_, now=now, reason=reason)


async def pause_in(
    connection: AsyncConnection, what: What, id_: int = EVERYTHING, *, now: float, reason: str | None = None
) -> bool:
    """The same, in the caller's transaction."""
    known = sa.select(pauses.c.id).where(pauses.c.what == what, pauses.c.id == id_)
    if (await connection.execute(known)).scalar() is not None:
        return False
    try:
        async with connection.begin_nested():
            await connection.execute(sa.insert(pauses).values(what=what, id=id_, since=now, reason=reason))
    except sa.exc.IntegrityError:
        return False  # somebody else did at the same moment
    return True


async def resume(db: Database, what: What, id_: int = EVERYTHING, *, now: float) -> bool:
    """It may go on; False when it was not paused."""
    async with db.write() as connection:
        gone = sa.delete(pauses).where(pauses.c.what == what, pauses.c.id == id_).returning(pauses.c.since)
        since = (await connection.execute(gone)).scalar()
        if since is None:
            return False
        # Whoever pauses and resumes the same at this moment waits for the row that is gone.
        await connection.execute(sa.delete(past_pauses).where(past_pauses.c.what == what, past_pauses.c.id == id_))
        over = {"what": what, "id": id_, "since": since, "until": now}
        await connection.execute(sa.insert(past_pauses).values(over))
        return True


async def forget_in(connection: AsyncConnection, what: What, id_: int) -> None:
    """It has ended, in the caller's transaction: there is nothing left that could be paused."""
    for table in (pauses, past_pauses):
        await connection.execute(sa.delete(table).where(table.c.what == what, table.c.id == id_))


async def listed(db: Database) -> list[Pause]:
    """All of them, the oldest first."""
    statement = sa.select(pauses.c.what, pauses.c.id, pauses.c.since, pauses.c.reason)
    async with db.read() as connection:
        rows = await connection.execute(statement.order_by(pauses.c.since, pauses.c.what, pauses.c.id))
        return [Pause(What(what), id_, since, reason) for what, id_, since, reason in rows]


async def named(db: Database) -> list[tuple[Pause, str | None]]:
    """All of them, the oldest first, with what people call the thing: a batch's public id, a lane's model, a tenant's
    name; None for everything."""
    names: dict[tuple[str, int], str] = {}
    own = {
        What.BATCH: sa.select(batches.c.id, batches.c.public_id),
        What.LANE: sa.select(lanes.c.id, lanes.c.model),
        What.TENANT: sa.select(tenants.c.id, tenants.c.name),
    }
    found = await listed(db)
    async with db.read() as connection:
        for what, statement in own.items():
            ids = [each.id for each in found if each.what is what]
            if ids:
                theirs = statement.where(db.any_of(statement.selected_columns.id, ids))
                names.update({(what, id_): name for id_, name in await connection.execute(theirs)})
    return [(each, names.get((each.what, each.id))) for each in found]


async def of_batches(db: Database, batch_ids: Iterable[int]) -> dict[int, Pause]:
    """Batch id → its own pause (not that of its tenant, a lane or everything)."""
    statement = sa.select(pauses.c.what, pauses.c.id, pauses.c.since, pauses.c.reason)
    statement = statement.where(pauses.c.what == What.BATCH, db.any_of(pauses.c.id, batch_ids))
    async with db.read() as connection:
        rows = await connection.execute(statement)
        return {id_: Pause(What(what), id_, since, reason) for what, id_, since, reason in rows}


def is_paused(
    *, batch_id: "sa.ColumnElement[int]", lane_id: "sa.ColumnElement[int]", tenant_id: "sa.ColumnElement[int]"
) -> "sa.ColumnElement[bool]":
    """Is what these columns name paused, in whatever way?"""
    return sa.exists().where(
        sa.or_(
            _is(What.ALL),
            sa.and_(_is(What.BATCH), pauses.c.id == batch_id),
            sa.and_(_is(What.LANE), pauses.c.id == lane_id),
            sa.and_(_is(What.TENANT), pauses.c.id == tenant_id),
        )
    )


def _is(what: What) -> "sa.ColumnElement[bool]":
    """Written as a literal: each claim asks, and a parameter more is time."""
    return pauses.c.what == sa.literal_column(f"'{what}'", sa.Text)


def of_work(
    table: sa.Table,
    *,
    batch_id: "sa.ColumnElement[int]",
    lane_id: "sa.ColumnElement[int]",
    tenant_id: "sa.ColumnElement[int]",
) -> "sa.Select[Any]":
    """The rows of `pauses` or `past_pauses` that are of what these columns name; of no column yet."""
    of = {What.ALL: sa.literal(EVERYTHING), What.BATCH: batch_id, What.LANE: lane_id, What.TENANT: tenant_id}
    theirs = (sa.and_(table.c.what == what, table.c.id == id_) for what, id_ in of.items())
    return sa.select().select_from(table).where(sa.or_(*theirs))
