"""The ledger's sums for each lane, kept as its rows are written: counting a ledger of millions would take seconds.

They are kept by `records` and `workers.reap`, with the rows or a moment after, and read for metrics. What a lane has
done lately is summed up in buckets of time, for foresight.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.tables import lane_latencies, lane_outcomes, lane_progress, past_pauses

#: A tally is added when it has so many calls, or after so long.
ADD_AT_LEAST: Final = 500
ADD_SECONDS: Final = 1.0
#: Stands for "however long": neither database compares infinity with the other's. Thirty years are longer than a call.
BEYOND_SECONDS: Final = 1e9
#: A call counts at the first bound that it does not exceed.
LATENCY_BOUNDS_SECONDS: Final = (
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, BEYOND_SECONDS,
)  # fmt: skip
#: What a lane does is summed up for so much time; a bucket is `int(unix seconds // BUCKET_SECONDS)`.
BUCKET_SECONDS: Final = 10


class CallMade(NamedTuple):
    """What the sums need of a row of the ledger. `outcome` is "succeeded" or a Reason."""

    lane_id: int
    outcome: str
    is_answered: bool
    seconds: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ended_at: float = 0.0
    is_final: bool = False  # its job finished with it


@dataclass(slots=True)
class Tally:
    """Calls that are in the ledger and not in the sums yet: one worker's, of the last moment. Where somebody waits for
    each call, two statements less for it are felt; what a worker that is killed had not added is missing in the sums.
    """

    calls: list[CallMade] = field(default_factory=list)
    added_at: float = float("-inf")

    def is_due(self, more: int, now: float) -> bool:
        """With so many more, is it time to add them?"""
        return len(self.calls) + more >= ADD_AT_LEAST or now - self.added_at >= ADD_SECONDS


async def add(db: Database, connection: AsyncConnection, calls: Iterable[CallMade]) -> None:
    """Count these calls. Rows are touched in the order of their keys, as everyone does, so nobody waits in a ring."""
    outcomes: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0, 0.0, 0, 0])
    latencies: dict[tuple[int, float], int] = defaultdict(int)
    done: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for call in calls:
        seconds = max(0.0, call.seconds)  # a clock that was set back
        total = outcomes[call.lane_id, call.outcome]
        total[0] += 1
        total[1] += seconds
        total[2] += call.prompt_tokens
        total[3] += call.completion_tokens
        if call.is_answered:
            bound = LATENCY_BOUNDS_SECONDS[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)]
            latencies[call.lane_id, bound] += 1
        if call.is_answered or call.is_final:
            lately = done[call.lane_id, int(call.ended_at // BUCKET_SECONDS)]
            lately[0] += call.is_final
            lately[1] += call.is_answered
            lately[2] += seconds if call.is_answered else 0.0
    await db.add_up(connection, lane_outcomes, [(*key, *total) for key, total in sorted(outcomes.items())])
    await db.add_up(connection, lane_latencies, [(*key, count) for key, count in sorted(latencies.items())])
    await db.add_up(connection, lane_progress, [(*key, *counts) for key, counts in sorted(done.items())])


@dataclass(frozen=True, slots=True)
class OutcomeSum:
    """All calls of a lane that ended in one way."""

    lane_id: int
    outcome: str
    calls: int
    seconds: float
    prompt_tokens: int
    completion_tokens: int


async def outcomes(db: Database) -> list[OutcomeSum]:
    """For every lane and outcome that there was."""
    statement = sa.select(*lane_outcomes.c).order_by(lane_outcomes.c.lane_id, lane_outcomes.c.outcome)
    async with db.read() as connection:
        return [OutcomeSum(*row) for row in await connection.execute(statement)]


async def latencies(db: Database) -> dict[int, dict[float, int]]:
    """Lane id → bound in seconds → answered calls that took at most so long, and longer than the next smaller bound.

    Every bound is there; the last one is BEYOND_SECONDS, which means: no bound.
    """
    found: dict[int, dict[float, int]] = defaultdict(lambda: dict.fromkeys(LATENCY_BOUNDS_SECONDS, 0))
    async with db.read() as connection:
        for lane_id, bound, calls in await connection.execute(sa.select(*lane_latencies.c)):
            found[lane_id][bound] = int(calls)
    return dict(found)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a lane did in one bucket."""

    lane_id: int
    bucket: int
    finished: int  # jobs
    calls: int  # that were answered
    seconds: float  # that these took together


async def progress(db: Database, lane_ids: Iterable[int], *, since_bucket: int) -> list[Progress]:
    """Of these lanes, from this bucket on, the oldest first. Buckets in which nothing ended are not there. Those of the
    last moment may still grow: a worker adds what it did once a second."""
    statement = sa.select(*lane_progress.c).where(
        db.any_of(lane_progress.c.lane_id, lane_ids), lane_progress.c.bucket >= since_bucket
    )
    async with db.read() as connection:
        rows = await connection.execute(statement.order_by(lane_progress.c.bucket, lane_progress.c.lane_id))
        return [Progress(*row) for row in rows]


async def forget_progress(db: Database, *, before: float) -> None:
    """Remove the buckets of what ended before this moment, and pauses that were over; foresight looks at the last
    minutes."""
    statement = sa.delete(lane_progress).where(lane_progress.c.bucket < int(before // BUCKET_SECONDS))
    async with db.write() as connection:
        await connection.execute(statement)
        await connection.execute(sa.delete(past_pauses).where(past_pauses.c.until < before))
