"""What could be claimed now, and all that decides whose turn it is: what a drain sees each time it looks."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import BatchState, State
from promptmill.limits import Limits
from promptmill.store.pauses import is_paused
from promptmill.store.rows import batch_in, in_state
from promptmill.tables import Seconds, batch_lanes, batches, jobs, tenants

_UNLIMITED: Final = Limits()


@dataclass(frozen=True, slots=True)
class Active:
    """A batch with ready jobs on a lane: what fairness chooses among."""

    batch_id: int
    lane_id: int
    priority: int
    deadline: float | None
    tenant_id: int
    weight: float  # among the tenant's batches of the same priority
    tenant_weight: float
    #: What all calls of the batch, and of the tenant, are bound by together, whatever their lanes.
    limits: Limits
    tenant_limits: Limits
    #: Jobs on the lane that are not finished: a guess where the batch has several lanes, since nothing is counted.
    remaining: int
    at_most: int  # as many are there at most
    waiting_since: float | None
    canary_until: int | None  # no job beyond this position may be claimed yet
    has_budget: bool


#: Made once: a drain asks twice a second, and to put such a statement together takes as long as to run it.
_COLUMNS: Final = (
    batches.c.id, batch_lanes.c.lane_id, batches.c.priority, batches.c.deadline, batches.c.tenant_id,
    batches.c.weight, tenants.c.weight.label("tenant_weight"),
    batches.c.requests_per_minute, batches.c.tokens_per_minute, batches.c.max_in_flight,
    tenants.c.requests_per_minute.label("tenant_rpm"), tenants.c.tokens_per_minute.label("tenant_tpm"),
    tenants.c.max_in_flight.label("tenant_in_flight"),
    (batches.c.total - batches.c.invalid).label("sent"),
    (batches.c.succeeded + batches.c.failed + batches.c.cancelled + batches.c.expired).label("done"),
    batch_lanes.c.total.label("on_lane"),
    batches.c.in_progress_at, batches.c.canary_until,
    sa.or_(batches.c.budget_tokens.is_not(None), batches.c.budget_cost.is_not(None)).label("has_budget"),
)  # fmt: skip
_READY: Final = (
    sa.select(jobs.c.id)
    .where(jobs.c.lane_id == batch_lanes.c.lane_id, jobs.c.batch_id == batch_lanes.c.batch_id)
    .where(in_state(State.READY))
    .where(sa.or_(batches.c.canary_until.is_(None), jobs.c.position <= batches.c.canary_until))
    .exists()
)
_PAUSED: Final = is_paused(batch_id=batches.c.id, lane_id=batch_lanes.c.lane_id, tenant_id=batches.c.tenant_id)
_ACTIVE: Final = (
    sa.select(*_COLUMNS)
    .join(batch_lanes, batch_lanes.c.batch_id == batches.c.id)
    .outerjoin(tenants, tenants.c.id == batches.c.tenant_id)
    .where(batches.c.finished_at.is_(None), batch_in(BatchState.IN_PROGRESS), _READY, sa.not_(_PAUSED))
    .where(sa.or_(batches.c.not_before.is_(None), batches.c.not_before <= sa.bindparam("now", type_=Seconds)))
    .order_by(batches.c.id)
)


async def active(db: Database, *, now: float, only: Collection[int] | None = None) -> list[Active]:
    """Every (batch, lane) with at least one ready job that may be claimed: of batches that run, are not paused, and
    whose time has come; of a batch with a canary, jobs of the canary until it is decided."""
    async with db.read() as connection:
        rows = await connection.execute(_ACTIVE, {"now": now})
        return [_active(row) for row in rows if only is None or row.id in only]


def _active(row: Any) -> Active:
    left = max(1, row.sent - row.done)
    on_lane = row.on_lane or row.sent  # an inbox that was made before they counted by lane
    return Active(
        batch_id=row.id,
        lane_id=row.lane_id,
        priority=row.priority,
        deadline=row.deadline,
        tenant_id=row.tenant_id,
        weight=row.weight,
        tenant_weight=1.0 if row.tenant_weight is None else row.tenant_weight,
        limits=_limits(row.requests_per_minute, row.tokens_per_minute, row.max_in_flight),
        tenant_limits=_limits(row.tenant_rpm, row.tenant_tpm, row.tenant_in_flight),
        remaining=-(-left * on_lane // max(1, row.sent)),
        at_most=max(1, min(left, on_lane)),
        waiting_since=row.in_progress_at,
        canary_until=row.canary_until,
        has_budget=bool(row.has_budget),
    )


def _limits(rpm: float | None, tpm: float | None, in_flight: int | None) -> Limits:
    if rpm is None and tpm is None and in_flight is None:
        return _UNLIMITED
    return Limits(rpm, tpm, in_flight)
