"""What foresight goes by, as the database has it: who has work on which lanes, how lanes did, what tokens came to."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.foresight import Load
from promptmill.job import BatchState, State
from promptmill.limits import Limits
from promptmill.store.pauses import of_work
from promptmill.store.records import SUCCEEDED
from promptmill.store.rows import batch_in
from promptmill.tables import batch_lanes, batches, jobs, lane_outcomes, past_pauses, pauses, results, tenants

#: Jobs of which a batch's mean prompt is told.
_SAMPLE: Final = 500


@dataclass(frozen=True, slots=True)
class Queued:
    """Unfinished work of a batch on a lane."""

    batch_id: int
    lane_id: int
    tenant_id: int
    priority: int
    weight: float
    left: int  # an estimate, where the batch is on several lanes
    deadline: float | None
    since: float  # it may be worked on from then on
    is_inbox: bool
    is_capped: bool
    paused_since: float | None  # None: it is not
    #: (since, until) of the last pause that is over.
    past_pause: tuple[float, float] | None

    @property
    def is_paused(self) -> bool:
        """Is it, its lane, its tenant or everything?"""
        return self.paused_since is not None


async def queue(db: Database, lane_ids: Iterable[int]) -> list[Queued]:
    """All that is to be done on these lanes, without counting it: what a batch has left is taken to be spread over its
    lanes as all of it was."""
    left = batches.c.total - sum(batches.c[each] for each in _FINISHED)
    of = {"batch_id": batches.c.id, "lane_id": batch_lanes.c.lane_id, "tenant_id": batches.c.tenant_id}
    over = of_work(past_pauses, **of).order_by(past_pauses.c.until.desc()).limit(1)
    capped = [batches.c[name].is_not(None) for name in ("max_in_flight", "requests_per_minute", "tokens_per_minute")]
    statement = (
        sa.select(
            batches.c.id, batch_lanes.c.lane_id, batches.c.tenant_id, batches.c.priority, batches.c.weight,
            left.label("left"), batches.c.total, batch_lanes.c.total.label("on_lane"), batches.c.in_progress_at,
            batches.c.not_before, batches.c.deadline, batches.c.is_inbox, sa.or_(*capped).label("is_capped"),
            of_work(pauses, **of).add_columns(sa.func.min(pauses.c.since)).scalar_subquery().label("paused_since"),
            over.add_columns(past_pauses.c.since).scalar_subquery().label("was_paused_since"),
            over.add_columns(past_pauses.c.until).scalar_subquery().label("was_paused_until"),
        )
        .join(batch_lanes, batch_lanes.c.batch_id == batches.c.id)
        .where(batches.c.finished_at.is_(None), batch_in(BatchState.IN_PROGRESS), left > 0)
        .where(db.any_of(batch_lanes.c.lane_id, lane_ids))
    )  # fmt: skip
    async with db.read() as connection:
        return [
            Queued(
                row.id, row.lane_id, row.tenant_id, row.priority, row.weight,
                -(-row.left * row.on_lane // row.total) if row.total else 0,
                row.deadline, max(row.in_progress_at or 0.0, row.not_before or 0.0),
                bool(row.is_inbox), bool(row.is_capped), row.paused_since,
                None if row.was_paused_since is None else (row.was_paused_since, row.was_paused_until),
            )
            for row in await connection.execute(statement)
        ]  # fmt: skip


_FINISHED: Final = ("succeeded", "failed", "cancelled", "expired", "invalid")


async def lanes_of(db: Database, batch_ids: Iterable[int]) -> dict[int, dict[int, int]]:
    """Batch id → lane id → jobs that it had there in the beginning."""
    found: dict[int, dict[int, int]] = defaultdict(dict)
    statement = sa.select(batch_lanes.c.batch_id, batch_lanes.c.lane_id, batch_lanes.c.total)
    async with db.read() as connection:
        for batch_id, lane_id, total in await connection.execute(
            statement.where(db.any_of(batch_lanes.c.batch_id, batch_ids))
        ):
            found[batch_id][lane_id] = total
    return dict(found)


@dataclass(frozen=True, slots=True)
class TenantTerms:
    """What holds for a tenant."""

    weight: float
    limits: Limits


async def tenant_terms(db: Database, tenant_ids: Iterable[int]) -> dict[int, TenantTerms]:
    """Of these tenants."""
    statement = sa.select(
        tenants.c.id, tenants.c.weight, tenants.c.requests_per_minute, tenants.c.tokens_per_minute,
        tenants.c.max_in_flight,
    ).where(db.any_of(tenants.c.id, tenant_ids))  # fmt: skip
    async with db.read() as connection:
        return {id_: TenantTerms(weight, Limits(*caps)) for id_, weight, *caps in await connection.execute(statement)}


async def tenant_named(db: Database, name: str) -> int | None:
    """The tenant's id; None where there is none of this name yet."""
    async with db.read() as connection:
        found: int | None = (await connection.execute(sa.select(tenants.c.id).where(tenants.c.name == name))).scalar()
        return found


@dataclass(frozen=True, slots=True)
class Learned:
    """What a lane's calls that succeeded came to, since there is the lane."""

    calls: int
    seconds_each: float
    completion_tokens_each: float


async def learned(db: Database, lane_ids: Iterable[int]) -> dict[int, Learned]:
    """Lane id → what it has learned, for those that have had an answer."""
    statement = sa.select(
        lane_outcomes.c.lane_id, lane_outcomes.c.calls, lane_outcomes.c.seconds, lane_outcomes.c.completion_tokens
    ).where(lane_outcomes.c.outcome == SUCCEEDED, lane_outcomes.c.calls > 0)
    async with db.read() as connection:
        rows = await connection.execute(statement.where(db.any_of(lane_outcomes.c.lane_id, lane_ids)))
        return {lane_id: Learned(calls, seconds / calls, tokens / calls) for lane_id, calls, seconds, tokens in rows}


async def prompt_tokens_each(db: Database, batch_id: int) -> float | None:
    """The mean estimate of the prompts that come next; None where all are done."""
    next_ones = sa.select(jobs.c.tokens).where(jobs.c.batch_id == batch_id).order_by(jobs.c.position).limit(_SAMPLE)
    async with db.read() as connection:
        mean = (await connection.execute(sa.select(sa.func.avg(next_ones.subquery().c.tokens)))).scalar()
        return None if mean is None else float(mean)


async def loads(db: Database, batch_id: int) -> dict[int, Load]:
    """Lane id → what the batch has left there, counted. Reads all of its unfinished jobs."""
    statement = (
        sa.select(
            jobs.c.lane_id, sa.func.count(), sa.func.sum(jobs.c.tokens),
            sa.func.coalesce(sa.func.sum(jobs.c.max_tokens), 0), sa.func.count(jobs.c.max_tokens),
        )
        .where(jobs.c.batch_id == batch_id)
        .group_by(jobs.c.lane_id)
    )  # fmt: skip
    async with db.read() as connection:
        return {
            lane_id: Load(count, int(tokens), int(most), count - bounded)
            for lane_id, count, tokens, most, bounded in await connection.execute(statement)
        }


@dataclass(frozen=True, slots=True)
class Spent:
    """What the answers of a batch on a lane came to."""

    answers: int  # those that succeeded
    prompt_tokens: int
    completion_tokens: int
    completion_squares: float  # sum of the squares of the answers' tokens


async def spent(db: Database, batch_id: int) -> dict[int, Spent]:
    """Lane id → what was answered there so far. Reads all results of the batch."""
    tokens = sa.cast(results.c.completion_tokens, sa.Double)
    statement = (
        sa.select(
            results.c.lane_id, sa.func.count(), sa.func.sum(results.c.prompt_tokens),
            sa.func.sum(results.c.completion_tokens), sa.func.sum(tokens * tokens),
        )
        .where(results.c.batch_id == batch_id, results.c.state == State.SUCCEEDED)
        .group_by(results.c.lane_id)
    )  # fmt: skip
    async with db.read() as connection:
        return {
            lane_id: Spent(count, int(prompt), int(completion), float(squares))
            for lane_id, count, prompt, completion, squares in await connection.execute(statement)
        }
