"""A schedule and its fires as they are shown. Times are unix seconds."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from promptmill import handling
from promptmill.engine import Database
from promptmill.handling import AfterCanary
from promptmill.job import BatchState
from promptmill.request import Defaults
from promptmill.schedules import Missed, Overlap
from promptmill.store import fires, inputs
from promptmill.store.fires import FireRow
from promptmill.store.schedules import FireState, ScheduleRow


class ScheduleObject(msgspec.Struct, kw_only=True):
    """A schedule as it is kept."""

    id: str
    object: str
    name: str
    cron: str | None
    at: float | None
    timezone: str
    starts_at: float | None
    ends_at: float | None
    missed: Missed
    catch_up: int
    grace_seconds: float
    overlap: Overlap
    jitter_seconds: float
    enabled: bool
    input_file_id: str | None
    endpoint: str | None
    model: str | None
    completion_window: str
    priority: int
    metadata: dict[str, str] | None
    weight: float
    max_in_flight: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    budget_tokens: int | None
    budget_cost: float | None
    canary: int | None
    canary_percent: float
    canary_then: AfterCanary
    next_fire_at: float | None
    last_fire_at: float | None
    fires: int
    created_at: float


#: Of Handling, what a schedule shows.
_HANDLING: Final = tuple(name for name in handling.FIELDS if name != "not_before")


async def schedules_shown(db: Database, rows: Sequence[ScheduleRow]) -> list[dict[str, Any]]:
    """In the same order, with what is to be asked for beside their rows asked for once."""
    files = await inputs.by_id(db, {row.terms.file_id for row in rows})
    last = await fires.latest(db, [row.id for row in rows])
    shown = []
    for row in rows:
        file = files.get(row.terms.file_id)
        shown.append(_schedule(row, None if file is None else file.public_id, last.get(row.id)))
    return shown


def _schedule(row: ScheduleRow, input_file_id: str | None, last_fire_at: float | None) -> dict[str, Any]:
    when, terms = row.when, row.terms
    told: dict[str, Any] = msgspec.to_builtins(
        ScheduleObject(
            id=row.public_id, object="schedule", name=row.name, cron=when.cron, at=when.at, timezone=when.zone,
            starts_at=when.starts_at, ends_at=when.ends_at, missed=when.missed, catch_up=when.catch_up,
            grace_seconds=when.grace_seconds, overlap=when.overlap, jitter_seconds=when.jitter_seconds,
            enabled=row.is_enabled, input_file_id=input_file_id, endpoint=terms.endpoint,
            model=Defaults.from_json(terms.defaults).model, completion_window=terms.completion_window,
            priority=terms.priority,
            metadata=None if terms.metadata is None else msgspec.json.decode(terms.metadata),
            **{name: getattr(terms.handling, name) for name in _HANDLING},
            next_fire_at=row.next_fire, last_fire_at=last_fire_at, fires=row.fires, created_at=row.created_at,
        )
    )  # fmt: skip
    return told


class FireObject(msgspec.Struct, kw_only=True):
    """What became of a fire."""

    id: str
    object: str
    schedule_id: str
    fire_time: float
    number: int | None
    state: FireState
    manual: bool
    batch_id: str | None
    batch_status: BatchState | None
    reason: str | None
    decided_at: float
    carried_out_at: float | None


_FIRE_ID: Final = re.compile(r"fire_([0-9a-f]{32})-([0-9]{1,12}(?:\.[0-9]{1,3})?)")


def fire_shown(row: FireRow, schedule: ScheduleRow) -> dict[str, Any]:
    """As it is shown."""
    told: dict[str, Any] = msgspec.to_builtins(
        FireObject(
            id=fire_id(schedule.public_id, row.at), object="schedule.fire", schedule_id=schedule.public_id,
            fire_time=row.at, number=row.number, state=row.state, manual=row.is_manual, batch_id=row.batch_public_id,
            batch_status=row.batch_state, reason=row.why, decided_at=row.decided_at, carried_out_at=row.carried_out_at,
        )
    )  # fmt: skip
    return told


def fire_id(schedule_public_id: str, at: float) -> str:
    """The fire's name outside: nothing is stored for it.

    >>> fire_id("sched_0123456789abcdef0123456789abcdef", 1780300860.0)
    'fire_0123456789abcdef0123456789abcdef-1780300860'
    """
    return f"fire_{schedule_public_id.removeprefix('sched_')}-{f'{at:.3f}'.rstrip('0').rstrip('.')}"


def fire_time_of(text: str, schedule_public_id: str) -> float | None:
    """The nominal time of the schedule's fire with this id; None where it is not one of this schedule's."""
    found = _FIRE_ID.fullmatch(text)
    return float(found[2]) if found and f"sched_{found[1]}" == schedule_public_id else None
