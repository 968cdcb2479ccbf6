"""Which fires of a schedule are to happen, decided once: by whoever looks first, however many look.

One transaction has the schedule's row to itself, asks the rule (`promptmill.schedules`) what is due, writes a row for
each fire, and moves `decided_until`. The unique index on schedule and nominal time stands behind it.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill import schedules as rule
from promptmill.engine import Database
from promptmill.errors import NotFound
from promptmill.schedules import Action, Due, Overlap
from promptmill.store import admissions, fires
from promptmill.store import schedules as store
from promptmill.store.fires import HELD_SECONDS
from promptmill.store.schedules import OPEN, FireState, ScheduleRow
from promptmill.tables import batches, schedule_fires, schedules

#: Schedules that are looked up together.
_AT_ONCE: Final = 100
#: What is run by hand has a time of its own, beside those of the schedule.
_ASIDE_SECONDS: Final = 0.001

_STATES: Final = {Action.RUN: FireState.DUE, Action.WAIT: FireState.WAITING, Action.SKIP: FireState.SKIPPED}
_OVERLAP: Final = "overlap: the batch of an earlier fire was not finished"


async def is_anything_due(db: Database, *, now: float) -> bool:
    """Is there a schedule to decide, a fire to carry out, or a batch of one to admit? Mostly there is not, and then one
    statement has told it."""
    found = (_to_decide(now), fires.free(now), admissions.free(now, made_by_schedules=True))
    async with db.read() as connection:
        return bool((await connection.execute(sa.select(sa.or_(*(each.exists() for each in found))))).scalar())


async def to_decide(db: Database, *, now: float) -> list[int]:
    """Schedules that have to be looked at, the most urgent first."""
    async with db.read() as connection:
        return list((await connection.execute(_to_decide(now))).scalars())


def _to_decide(now: float) -> "sa.Select[int]":
    statement = sa.select(schedules.c.id).where(schedules.c.next_at <= now)
    return statement.order_by(schedules.c.next_at).limit(_AT_ONCE)


async def decide(db: Database, schedule_id: int, *, now: float) -> None:
    """Decide the schedule's fires up to now. Does nothing where somebody else does it at this moment, or did."""
    async with db.write() as connection:
        row = await store.locked(connection, schedule_id, skip_locked=True)
        if row is None or not row.is_enabled or row.next_at is None or row.next_at > now:
            return
        standing = await _standing(connection, row.id)
        if standing.waiting and (row.when.overlap is Overlap.ALLOW or not standing.is_active):
            freed = len(standing.waiting) if row.when.overlap is Overlap.ALLOW else 1
            await _let_go_on(connection, standing.waiting[:freed], now)
            standing = _Standing(is_active=True, waiting=standing.waiting[freed:])
        found = rule.due(row.when, last_fire=row.decided_until, now=now)
        made, waits = await _rows_for(connection, row, found, standing, now)
        if made:
            await connection.execute(sa.insert(schedule_fires), made)
        numbers = [each["number"] for each in made if each["number"] is not None]
        looked = {
            "decided_until": found.decided_until,
            "next_at": store.next_look(row.when, found.decided_until, waits=waits, now=now),
            "fires": max(numbers, default=row.fires),
        }
        await store.update(connection, row.id, looked)


async def run_now(
    db: Database,
    schedule_id: int,
    *,
    holder: str,
    now: float,
    also: Callable[[AsyncConnection, int], Awaitable[None]] | None = None,
) -> int:
    """A fire that obeys nothing: not the times, not the overlap, not even that the schedule is disabled. It is due and
    `holder`'s; returns its id. `also` is told it, in the same transaction. Raises NotFound."""
    async with db.write() as connection:
        row = await store.locked(connection, schedule_id)
        if row is None:
            raise NotFound("the schedule was removed")
        at = await _free_time(connection, row, now)
        values = {
            **_fire(row.id, at, FireState.DUE, now), "number": row.fires + 1,
            "previous_at": await _latest_before(connection, row.id, at), "is_manual": True, "holder": holder,
            "holder_until": now + HELD_SECONDS,
        }  # fmt: skip
        made = sa.insert(schedule_fires).values(values).returning(schedule_fires.c.id)
        fire_id = int((await connection.execute(made)).scalar_one())
        await store.update(connection, row.id, {"fires": row.fires + 1})
        if also is not None:
            await also(connection, fire_id)
        return fire_id


@dataclass(frozen=True, slots=True)
class _Standing:
    """What earlier fires are doing."""

    #: One is due, or its batch is not finished.
    is_active: bool
    #: Ids of those that wait, the oldest first.
    waiting: Sequence[int]


async def _standing(connection: AsyncConnection, schedule_id: int) -> _Standing:
    theirs = schedule_fires.c.schedule_id == schedule_id
    open_ = sa.select(schedule_fires.c.id, schedule_fires.c.state).where(OPEN, theirs)
    rows = (await connection.execute(open_.order_by(schedule_fires.c.at))).all()
    waiting = [row.id for row in rows if row.state == FireState.WAITING]
    if len(waiting) < len(rows):
        return _Standing(is_active=True, waiting=waiting)
    # From the batches that are not finished: they are few, and a schedule may have half a million fires.
    made = sa.exists().where(schedule_fires.c.batch_id == batches.c.id, theirs)
    under_way = sa.select(batches.c.id).where(batches.c.finished_at.is_(None), made).limit(1)
    return _Standing((await connection.execute(under_way)).first() is not None, waiting)


async def _let_go_on(connection: AsyncConnection, fire_ids: Sequence[int], now: float) -> None:
    """waiting → due"""
    theirs = sa.update(schedule_fires).where(schedule_fires.c.id.in_(fire_ids))
    await connection.execute(theirs.values(state=FireState.DUE, decided_at=now))


async def _rows_for(
    connection: AsyncConnection, row: ScheduleRow, found: Due, standing: _Standing, now: float
) -> tuple[list[dict[str, Any]], bool]:
    """The rows of fires that are due, and whether any waits now."""
    known = await _known(connection, row.id, found)
    made = []
    if found.last_left_out is not None and found.last_left_out not in known:
        others = f"; so did {found.left_out - 1:,} before it" if found.left_out > 1 else ""
        left_out = _fire(row.id, found.last_left_out, FireState.SKIPPED, now)
        reason = f"missed: its time passed while nobody was there to carry it out{others}"
        made.append({**left_out, "reason": reason})
    is_active, waiting, number = standing.is_active, len(standing.waiting), row.fires
    previous_at: float | None = None
    for at in found.run:
        if at in known:
            continue  # it was decided under earlier times of the schedule
        state = _STATES[rule.overlapping(row.when, previous_is_active=is_active, waiting=waiting)]
        fire = _fire(row.id, at, state, now)
        if state is FireState.SKIPPED:
            made.append({**fire, "reason": _OVERLAP})
            continue
        number += 1
        if previous_at is None:
            previous_at = await _latest_before(connection, row.id, at)
        made.append({**fire, "number": number, "previous_at": previous_at})
        previous_at = at
        is_active = True
        waiting += state is FireState.WAITING
    return made, waiting > 0


def _fire(schedule_id: int, at: float, state: FireState, now: float) -> dict[str, Any]:
    return {
        "schedule_id": schedule_id, "at": at, "state": state, "decided_at": now, "number": None, "previous_at": None,
        "reason": None,
    }  # fmt: skip


async def _known(connection: AsyncConnection, schedule_id: int, found: Due) -> set[float]:
    times = [*found.run, *([] if found.last_left_out is None else [found.last_left_out])]
    if not times:
        return set()
    statement = sa.select(schedule_fires.c.at).where(
        schedule_fires.c.schedule_id == schedule_id,
        schedule_fires.c.at >= min(times),
        schedule_fires.c.at <= max(times),
    )
    return set((await connection.execute(statement)).scalars())


async def _latest_before(connection: AsyncConnection, schedule_id: int, at: float) -> float | None:
    """The nominal time of the fire before that one, of those that have a number."""
    statement = sa.select(schedule_fires.c.at).where(
        schedule_fires.c.schedule_id == schedule_id, schedule_fires.c.at < at, schedule_fires.c.number.is_not(None)
    )
    latest: float | None = (await connection.execute(statement.order_by(schedule_fires.c.at.desc()).limit(1))).scalar()
    return latest


async def _free_time(connection: AsyncConnection, row: ScheduleRow, now: float) -> float:
    """Now, to the millisecond, or as soon after as no other fire has, nor will have."""
    at = round(now, 3)
    while True:
        statement = sa.select(schedule_fires.c.id).where(
            schedule_fires.c.schedule_id == row.id, schedule_fires.c.at == at
        )
        taken = (await connection.execute(statement)).first() is not None
        if not taken and rule.next_fire(row.when, after=math.nextafter(at, -math.inf)) != at:
            return at
        at = round(at + _ASIDE_SECONDS, 3)
