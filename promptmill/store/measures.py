"""What a dashboard asks: how many jobs are where, what became of calls, how long they took, who waits for what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import BatchState
from promptmill.store import sums
from promptmill.store.workers import LEASE_SECONDS
from promptmill.tables import batches, jobs, lanes, workers

_COUNTS: Final = ("succeeded", "failed", "cancelled", "expired", "invalid")
_WAITS = msgspec.json.Decoder(dict[str, str])


@dataclass(frozen=True, slots=True)
class Measures:
    """All of it, at one moment. A lane is (upstream, model)."""

    #: (upstream, model, state) → jobs that are not finished.
    unfinished: dict[tuple[str, str, str], int] = field(default_factory=dict)
    #: State → jobs that are finished, since the database was made.
    finished: dict[str, int] = field(default_factory=dict)
    #: State → batches.
    batches: dict[str, int] = field(default_factory=dict)
    #: (upstream, model, lane state) of every lane, and until when it is paused.
    lanes: list[tuple[str, str, str, float | None]] = field(default_factory=list)
    #: (upstream, model, outcome) → calls, seconds, prompt tokens, completion tokens.
    outcomes: dict[tuple[str, str, str], tuple[int, float, int, int]] = field(default_factory=dict)
    #: (upstream, model) → bound in seconds → answered calls up to it that took longer than the bound before.
    latencies: dict[tuple[str, str], dict[float, int]] = field(default_factory=dict)
    #: (upstream, model, cause) → workers that could start more calls but for this.
    waits: dict[tuple[str, str, str], int] = field(default_factory=dict)
    workers: int = 0
    in_flight: int = 0


async def read(db: Database, *, now: float) -> Measures:
    """Read it. Of the unfinished jobs every row is looked at, of the finished ones only sums."""
    found = Measures()
    names: dict[int, tuple[str, str]] = {}
    for lane_id, upstream, model, state, paused_until in await _rows(
        db, sa.select(lanes.c.id, lanes.c.upstream, lanes.c.model, lanes.c.state, lanes.c.paused_until)
    ):
        names[lane_id] = (upstream, model)
        found.lanes.append((upstream, model, state, paused_until))
    by_state = sa.select(jobs.c.lane_id, jobs.c.state, sa.func.count()).group_by(jobs.c.lane_id, jobs.c.state)
    for lane_id, state, count in await _rows(db, by_state):
        if lane_id in names:
            found.unfinished[*names[lane_id], state] = count
    (counts,) = await _rows(db, sa.select(*(sa.func.sum(batches.c[name]) for name in _COUNTS)))
    found.finished.update({name: int(count or 0) for name, count in zip(_COUNTS, counts, strict=True)})
    of_batches = sa.select(batches.c.state, sa.func.count()).where(sa.not_(batches.c.is_inbox))
    found.batches.update({state.value: 0 for state in BatchState})
    found.batches.update(dict(list(await _rows(db, of_batches.group_by(batches.c.state)))))
    for total in await sums.outcomes(db):
        if total.lane_id in names:
            found.outcomes[*names[total.lane_id], total.outcome] = (
                total.calls, total.seconds, total.prompt_tokens, total.completion_tokens,
            )  # fmt: skip
    for lane_id, bounds in (await sums.latencies(db)).items():
        if lane_id in names:
            found.latencies[names[lane_id]] = bounds
    return await _with_workers(db, found, names, now)


async def _with_workers(db: Database, found: Measures, names: dict[int, tuple[str, str]], now: float) -> Measures:
    alive = sa.select(workers.c.in_flight, workers.c.waiting_for).where(
        workers.c.stopped_at.is_(None), workers.c.heartbeat_at >= now - LEASE_SECONDS
    )
    count = in_flight = 0
    for calls, waiting_for in await _rows(db, alive):
        count += 1
        in_flight += calls
        for lane_id, cause in (_WAITS.decode(waiting_for) if waiting_for else {}).items():
            if (name := names.get(int(lane_id))) is not None:
                found.waits[*name, cause] = found.waits.get((*name, cause), 0) + 1
    return Measures(
        found.unfinished, found.finished, found.batches, found.lanes, found.outcomes, found.latencies, found.waits,
        count, in_flight,
    )  # fmt: skip


async def _rows(db: Database, statement: "sa.Select[Any]") -> Sequence[Any]:
    async with db.read() as connection:
        rows: Sequence[Any] = (await connection.execute(statement)).all()
        return rows
