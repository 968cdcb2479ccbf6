"""What is submitted again and again, or once at a time: made, found, changed, enabled and disabled, removed.

What becomes of its fires is decided in `deciding`; how they are carried out stands in `fires`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill import schedules as rule
from promptmill.engine import Database
from promptmill.errors import NotFound
from promptmill.handling import Handling
from promptmill.schedules import Missed, Overlap, Schedule
from promptmill.store.rows import is_public_id, new_public_id
from promptmill.tables import DEFAULT_TENANT, schedule_fires, schedules

#: Fires that wait for an earlier one's batch are looked after this often.
WAITING_SECONDS: Final = 1.0

_PREFIX: Final = "sched_"
#: Of a Schedule, what says at which times it fires: a change of these begins anew.
_TIMES: Final = ("cron", "at", "zone", "starts_at")
_TIMING: Final = tuple(each.name for each in fields(Schedule) if each.name != "id")


class FireState(StrEnum):
    """How far a fire is. The comment says who moves it on, and what happens if that process dies."""

    #: To be carried out. Whoever holds it makes its batch; when its holder says nothing for a while, anybody else does.
    DUE = "due"
    #: The batch of an earlier one is not finished. Becomes due when it is: any drain looks after it, and upkeep.
    WAITING = "waiting"
    #: Its batch was made, in the transaction that wrote this.
    FIRED = "fired"
    #: No batch could be made; the reason is kept.
    FAILED = "failed"
    #: Left out by a policy or by hand; the reason is kept.
    SKIPPED = "skipped"


#: Fires that are due or wait, as the partial index has it: only then does it apply.
OPEN: Final = schedule_fires.c.state.in_([sa.literal_column(f"'{state}'") for state in ("due", "waiting")])


class NameTaken(Exception):  # noqa: N818 - a fact, for the caller to put in words
    """The tenant has a schedule of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every fire submits, and how. The fields are columns."""

    file_id: int
    source: str  # where the lines came from, for people: a file name
    has_templates: bool
    defaults: str  # jsonl.Defaults as JSON
    handling: Handling
    priority: int
    completion_window: str
    max_attempts: int
    dialect: str | None = None
    endpoint: str | None = None
    metadata: str | None = None  # JSON


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as the database has it."""

    id: int
    public_id: str
    tenant_id: int
    name: str
    when: Schedule
    terms: Terms
    is_enabled: bool
    #: Up to which nominal time its fires are decided.
    decided_until: float
    #: When it has to be looked at again; None: never.
    next_at: float | None
    #: How many fires have a number so far.
    fires: int
    created_at: float

    @property
    def next_fire(self) -> float | None:
        """The nominal time of the next fire that is not decided; None where there is none, or it is disabled."""
        return rule.next_fire(self.when, after=self.decided_until) if self.is_enabled else None


_TERMS: Final = tuple(each.name for each in fields(Terms))
_OWN: Final = (
    "id", "public_id", "tenant_id", "name", "is_enabled", "decided_until", "next_at", "fires", "created_at",
)  # fmt: skip
_COLUMNS: Final = tuple(schedules.c[name] for name in (*_OWN, *_TIMING, *_TERMS))
_THERE: Final = schedules.c.removed_at.is_(None)


def _row(row: Any) -> ScheduleRow:
    values = row._asdict()
    timing = {name: values[name] for name in _TIMING}
    timing |= {"missed": Missed(values["missed"]), "overlap": Overlap(values["overlap"])}
    terms = {name: values[name] for name in _TERMS}
    terms["handling"] = msgspec.json.decode(values["handling"], type=Handling)
    return ScheduleRow(
        **{name: values[name] for name in _OWN},
        when=Schedule(id=values["public_id"], **timing),
        terms=Terms(**terms),
    )


def _timing_columns(when: Schedule) -> dict[str, Any]:
    return {name: getattr(when, name) for name in _TIMING}


def _terms_columns(terms: Terms) -> dict[str, Any]:
    columns = {name: getattr(terms, name) for name in _TERMS}
    return {**columns, "handling": msgspec.json.encode(terms.handling).decode()}


def new_id() -> str:
    """A public id: jitter is drawn from it, so it is known before the schedule is checked."""
    return new_public_id(_PREFIX)


async def create(
    db: Database,
    *,
    name: str,
    when: Schedule,
    terms: Terms,
    now: float,
    is_enabled: bool = True,
    tenant_id: int = DEFAULT_TENANT,
    also: Callable[[AsyncConnection], Awaitable[None]] | None = None,
) -> ScheduleRow:
    """A new schedule, under the id of `when` (see `new_id`). `also` is done in the same transaction.

    Raises NameTaken.
    """
    decided = rule.first_decided(when, now=now)
    made = sa.insert(schedules).values(
        **_timing_columns(when), **_terms_columns(terms), public_id=when.id, tenant_id=tenant_id, name=name,
        is_enabled=is_enabled, decided_until=decided, created_at=now,
        next_at=next_look(when, decided, waits=False, now=now) if is_enabled else None,
    )  # fmt: skip
    async with db.write() as connection:
        try:
            async with connection.begin_nested():
                row = _row((await connection.execute(made.returning(*_COLUMNS))).one())
        except sa.exc.IntegrityError:
            raise NameTaken(name) from None
        if also is not None:
            await also(connection)
    return row


def next_look(when: Schedule, decided_until: float, *, waits: bool, now: float) -> float | None:
    """When to look at the schedule again: at its next fire, and soon where one `waits`."""
    fire = rule.next_fire(when, after=decided_until)
    looks = [] if fire is None else [rule.carried_out_at(when, fire)]
    if waits:
        looks.append(now + WAITING_SECONDS)
    return min(looks, default=None)


async def get(db: Database, schedule_id: int) -> ScheduleRow:
    """One schedule. Raises NotFound for one that was removed."""
    async with db.read() as connection:
        row = (await connection.execute(sa.select(*_COLUMNS).where(schedules.c.id == schedule_id, _THERE))).first()
    if row is None:
        raise NotFound("the schedule was removed")
    return _row(row)


async def by_public_id(db: Database, public_id: str, *, tenant_id: int) -> ScheduleRow | None:
    """The tenant's schedule with this public id."""
    if not is_public_id(public_id):
        return None
    statement = sa.select(*_COLUMNS).where(
        schedules.c.public_id == public_id, schedules.c.tenant_id == tenant_id, _THERE
    )
    async with db.read() as connection:
        row = (await connection.execute(statement)).first()
    return None if row is None else _row(row)


async def find(db: Database, reference: str) -> ScheduleRow:
    """The schedule of this name, or with this public id (a unique beginning will do). Raises NotFound."""
    ways = [schedules.c.name == reference]
    if reference.startswith(_PREFIX) and reference != _PREFIX:
        ways.append(schedules.c.public_id.startswith(reference, autoescape=True))
    async with db.read() as connection:
        for is_it in ways:
            rows = (await connection.execute(sa.select(*_COLUMNS).where(is_it, _THERE).limit(2))).all()
            if len(rows) > 1:
                raise NotFound(
                    f"more than one schedule is called {reference!r}, or begins so; give its id (`schedule list`)"
                )
            if rows:
                return _row(rows[0])
    raise NotFound(f"no schedule {reference!r} in this database")


async def listed(
    db: Database, *, tenant_id: int | None = None, below: int | None = None, limit: int | None = None
) -> list[ScheduleRow]:
    """The newest schedules; with `tenant_id`, those of this tenant; those made before the one with the id `below`."""
    statement = sa.select(*_COLUMNS).where(_THERE).order_by(schedules.c.id.desc()).limit(limit)
    if tenant_id is not None:
        statement = statement.where(schedules.c.tenant_id == tenant_id)
    if below is not None:
        statement = statement.where(schedules.c.id < below)
    async with db.read() as connection:
        return [_row(row) for row in await connection.execute(statement)]


async def locked(connection: AsyncConnection, schedule_id: int, *, skip_locked: bool = False) -> ScheduleRow | None:
    """The schedule, as nobody else changes it until the transaction has ended; None where it was removed, or
    (`skip_locked`) somebody else has it."""
    statement = sa.select(*_COLUMNS).where(schedules.c.id == schedule_id, _THERE)
    row = (await connection.execute(statement.with_for_update(skip_locked=skip_locked))).first()
    return None if row is None else _row(row)


async def update(connection: AsyncConnection, schedule_id: int, values: Mapping[str, Any]) -> None:
    """Write these columns of a schedule that is `locked`."""
    await connection.execute(sa.update(schedules).where(schedules.c.id == schedule_id).values(dict(values)))


async def change(
    db: Database,
    schedule_id: int,
    *,
    now: float,
    name: str | None = None,
    when: Schedule | None = None,
    terms: Terms | None = None,
) -> ScheduleRow:
    """Another name, other times, other terms; what is not given stays. What is decided stays decided, and with other
    times it fires from now on. Raises NotFound, NameTaken."""
    async with db.write() as connection:
        row = await _found(connection, schedule_id)
        values: dict[str, Any] = {} if name is None else {"name": name}
        if terms is not None:
            values |= _terms_columns(terms)
        if when is not None:
            anew = any(getattr(when, each) != getattr(row.when, each) for each in _TIMES) or _is_over(row.when, now)
            decided = rule.first_decided(when, now=now) if anew else row.decided_until
            values |= {**_timing_columns(when), "decided_until": decided}
            if row.is_enabled:
                values["next_at"] = next_look(when, decided, waits=await _any_waits(connection, row.id), now=now)
        try:
            async with connection.begin_nested():
                await update(connection, row.id, values)
        except sa.exc.IntegrityError:
            raise NameTaken(name) from None
        return await _found(connection, schedule_id)


def _is_over(when: Schedule, now: float) -> bool:
    """Where it goes on after all, it does from now on: not with what would have been between."""
    return when.ends_at is not None and when.ends_at <= now


async def enable(db: Database, schedule_id: int, *, now: float) -> ScheduleRow:
    """It fires from now on: what passed while it was disabled is neither run nor called missed. Raises NotFound."""
    async with db.write() as connection:
        row = await _found(connection, schedule_id)
        if not row.is_enabled:
            decided = max(row.decided_until, now)
            await update(
                connection,
                row.id,
                {
                    "is_enabled": True,
                    "decided_until": decided,
                    "next_at": next_look(row.when, decided, waits=await _any_waits(connection, row.id), now=now),
                },
            )
        return await _found(connection, schedule_id)


async def disable(db: Database, schedule_id: int, *, now: float) -> ScheduleRow:
    """It fires no more until it is enabled; a fire that waits for an earlier one's batch is left out.

    Raises NotFound.
    """
    async with db.write() as connection:
        await _found(connection, schedule_id)
        await _leave_out(connection, schedule_id, [FireState.WAITING], "the schedule was disabled", now)
        await update(connection, schedule_id, {"is_enabled": False, "next_at": None})
        return await _found(connection, schedule_id)


async def remove(db: Database, schedule_id: int, *, now: float) -> None:
    """It is gone, and its name free; the batches that it made stay. Raises NotFound."""
    async with db.write() as connection:
        await _found(connection, schedule_id)
        await _leave_out(connection, schedule_id, [FireState.DUE, FireState.WAITING], "the schedule was removed", now)
        await update(connection, schedule_id, {"is_enabled": False, "next_at": None, "removed_at": now})


async def postpone(db: Database, schedule_id: int, *, until: float) -> None:
    """It cannot be decided now: look at it again then, and not all the time."""
    later = sa.update(schedules).where(schedules.c.id == schedule_id, schedules.c.is_enabled).values(next_at=until)
    async with db.write() as connection:
        await connection.execute(later)


async def _found(connection: AsyncConnection, schedule_id: int) -> ScheduleRow:
    row = await locked(connection, schedule_id)
    if row is None:
        raise NotFound("the schedule was removed")
    return row


async def _any_waits(connection: AsyncConnection, schedule_id: int) -> bool:
    statement = sa.select(schedule_fires.c.id).where(
        OPEN, schedule_fires.c.schedule_id == schedule_id, schedule_fires.c.state == FireState.WAITING
    )
    return (await connection.execute(statement.limit(1))).first() is not None


async def _leave_out(
    connection: AsyncConnection, schedule_id: int, states: list[FireState], reason: str, now: float
) -> None:
    theirs = sa.update(schedule_fires).where(
        OPEN, schedule_fires.c.schedule_id == schedule_id, schedule_fires.c.state.in_(states)
    )
    await connection.execute(theirs.values(state=FireState.SKIPPED, reason=reason, decided_at=now))
