"""What may be changed of a batch that is not finished: its place among others, its deadline, caps, budgets and start.

The row is changed in one transaction, and drains go by it from their next look on. Only the deadline is on the jobs too
(they expire by an index on it), and follows there some thousand at a time: `spread_deadline`.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final

import sqlalchemy as sa
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill import handling
from promptmill.engine import Database
from promptmill.errors import NotNow, UsageError
from promptmill.handling import AfterCanary
from promptmill.job import BATCH_FINISHED, BatchState
from promptmill.store.batches import BatchRow, canary_until, check_deadline, locked, refuse_left
from promptmill.tables import batches, jobs

_ROWS_AT_ONCE: Final = 5_000
_CANARY: Final = frozenset({"canary", "canary_percent", "canary_then"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be other than it was. UNSET: as it is; None: none any more."""

    priority: int | UnsetType = UNSET
    #: Give one of both: a moment (unix seconds), or a window, which begins when the batch was made.
    deadline: float | UnsetType | None = UNSET
    completion_window: str | UnsetType = UNSET
    metadata: str | UnsetType | None = UNSET  # JSON
    # As in handling.Handling.
    weight: float | UnsetType = UNSET
    max_in_flight: int | UnsetType | None = UNSET
    requests_per_minute: float | UnsetType | None = UNSET
    tokens_per_minute: float | UnsetType | None = UNSET
    budget_tokens: int | UnsetType | None = UNSET
    budget_cost: float | UnsetType | None = UNSET
    canary: int | UnsetType | None = UNSET
    canary_percent: float | UnsetType = UNSET
    canary_then: AfterCanary | UnsetType = UNSET
    not_before: float | UnsetType | None = UNSET

    @property
    def given(self) -> dict[str, Any]:
        """Field → its new value."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not UNSET}


async def change(db: Database, *, batch_id: int, wanted: Change, now: float) -> bool:
    """Change the batch; True when its jobs still have to be told of a new deadline (`spread_deadline`).

    Raises NotNow for a batch that has ended or ends, or does not take this change any more; UsageError for values that
    make no sense; NotFound.
    """
    async with db.write() as connection:
        batch = await locked(connection, batch_id)
        values = wanted.given
        _refuse_late(batch, values, now)
        _set_deadline(batch, values, now)
        handled = {name: value for name, value in values.items() if name in handling.FIELDS}
        handling.check(replace(batch.handling, **handled))
        if _CANARY & values.keys():
            await _refuse_after_start(connection, batch)
        if values:
            await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(values))
        if "canary" in values and batch.state is BatchState.IN_PROGRESS:
            first_ones = await canary_until(connection, batch_id)
            statement = sa.update(batches).where(batches.c.id == batch_id)
            await connection.execute(statement.values(canary_until=first_ones))
    return "deadline" in values


def _refuse_late(batch: BatchRow, values: dict[str, Any], now: float) -> None:
    refuse_left(batch, now)
    if batch.state in BATCH_FINISHED or batch.state is BatchState.CANCELLING:
        raise NotNow(f"{batch.public_id} is {batch.state.value}; only a batch that is to go on can be changed")
    if batch.state is BatchState.VALIDATING and {"deadline", "completion_window"} & values.keys():
        raise NotNow(f"the lines of {batch.public_id} are still being read; change its deadline when it is in_progress")


def _set_deadline(batch: BatchRow, values: dict[str, Any], now: float) -> None:
    """Say the window as a moment. Raises UsageError for one that has passed, or is none."""
    if "completion_window" in values:
        if "deadline" in values:
            raise UsageError("deadline and completion_window say the same; give one of them")
        values["deadline"] = handling.deadline(
            values["completion_window"], made_at=batch.created_at, not_before=values.get("not_before", batch.not_before)
        )
    check_deadline(values.get("deadline"))
    deadline, not_before = (values.get(name, getattr(batch, name)) for name in ("deadline", "not_before"))
    if deadline is None:
        return
    if "deadline" in values and deadline <= now:
        name = "completion_window" if "completion_window" in values else "deadline"
        raise UsageError(f"{name} ended {now - deadline:,.0f} s ago; choose a later one, or cancel the batch")
    if {"deadline", "not_before"} & values.keys() and not_before is not None and deadline <= not_before:
        raise UsageError("not_before lies behind the deadline: the batch would expire before it starts; change both")


async def _refuse_after_start(connection: AsyncConnection, batch: BatchRow) -> None:
    if batch.is_open and not batch.total:
        raise NotNow(f"{batch.public_id} has no jobs yet, so a canary has nothing to begin with")
    started = sa.select(jobs.c.id).where(jobs.c.batch_id == batch.id, jobs.c.epoch > 0).limit(1)
    if batch.done > batch.invalid or (await connection.execute(started)).scalar() is not None:
        raise NotNow(f"jobs of {batch.public_id} were started already; a canary goes before all of them")


async def spread_deadline(db: Database, *, batch_id: int) -> int:
    """Have the unfinished jobs expire when their batch does; returns how many were told.

    Each step locks jobs, then their batch (as everywhere: see `records`), and takes the deadline that the batch has by
    then; so the last change wins, however many are made at once.
    """
    told = 0
    own = sa.select(batches.c.deadline).where(batches.c.id == batch_id)
    others = jobs.c.deadline.is_distinct_from(own.scalar_subquery())
    picked = sa.select(jobs.c.id).where(jobs.c.batch_id == batch_id, others).order_by(jobs.c.id).limit(_ROWS_AT_ONCE)
    while True:
        async with db.write() as connection:
            ids = list((await connection.execute(picked.with_for_update(of=jobs))).scalars())
            if not ids:
                return told
            deadline = (await connection.execute(own.with_for_update())).scalar()
            statement = sa.update(jobs).where(db.any_of(jobs.c.id, ids))
            await connection.execute(statement.values(deadline=deadline))
            told += len(ids)
