"""What `promptmill status` knows: a batch with its lanes, calls, failures and workers, as values and as plain facts."""

from dataclasses import dataclass
from typing import Any

import msgspec

from cli import standstill
from promptmill import handling, outlook
from promptmill.engine import Database
from promptmill.estimate import Bill, bill_of
from promptmill.job import State
from promptmill.outlook import Outlook
from promptmill.settings import Settings
from promptmill.store import batches, lanes, overview, results
from promptmill.store.batches import BatchRow
from promptmill.store.lanes import LaneRow
from promptmill.store.overview import WorkerRow
from promptmill.store.workers import LEASE_SECONDS
from promptmill.told import bill_told, foresight_told

#: custom_ids that are named for each reason, where somebody asks for failures.
_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReason:
    """Why jobs of a batch did not succeed."""

    code: str
    jobs: int
    message: str  # of one of them
    examples: tuple[str, ...]  # custom_ids of the first ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """All that is known about a batch."""

    batch: BatchRow
    #: Of all states that any job is in.
    jobs: dict[State, int]
    #: Each with the number of this batch's jobs that are not finished on it.
    lanes: tuple[tuple[LaneRow, int], ...]
    #: Outcome → upstream calls; a job may take several.
    calls: dict[str, int]
    failures: tuple[FailureReason, ...]
    workers: tuple[WorkerRow, ...]
    #: Why it stands still by somebody's word, a sentence for each.
    standstill: tuple[str, ...]
    outlook: Outlook | None  # until it has ended
    bill: Bill


async def read_detail(
    db: Database, settings: Settings, reference: str | None, *, with_examples: bool, now: float
) -> Detail:
    """The batch that is meant (see `batches.find`), in detail; examples cost a query for each reason."""
    batch = await batches.find(db, reference, only_looks=True)
    unfinished = (await batches.counts_by_state(db, [batch.id])).get(batch.id, {})
    left = await batches.unfinished_lanes(db, batch.id)
    rows = await lanes.read(db, await batches.lane_names(db, batch.id))
    calls = await results.call_counts(db, batch.id)
    return Detail(
        batch=batch,
        jobs={state: n for state, n in {**unfinished, **finished_counts(batch)}.items() if n},
        lanes=tuple((row, left.get(row.id, 0)) for row in rows),
        calls=dict(sorted(calls.items(), key=lambda item: (-item[1], item[0]))),
        failures=await _failures(db, batch.id, with_examples=with_examples),
        workers=tuple(await overview.working(db)),
        standstill=await standstill.reasons(db, batch, now=now),
        outlook=(await outlook.of_batches(db, settings, [batch], now=now, left={batch.id: left})).get(batch.id),
        bill=await bill_of(db, settings, batch),
    )


async def _failures(db: Database, batch_id: int, *, with_examples: bool) -> tuple[FailureReason, ...]:
    reasons = []
    for code, count, message in await results.failure_counts(db, batch_id):
        named = await overview.examples(db, batch_id, code, limit=_EXAMPLES) if with_examples else []
        reasons.append(FailureReason(code=code, jobs=count, message=message, examples=tuple(named)))
    return tuple(reasons)


def finished_counts(batch: BatchRow) -> dict[State, int]:
    """The batch's counts of finished jobs, by state."""
    return {
        State.SUCCEEDED: batch.succeeded,
        State.FAILED: batch.failed,
        State.CANCELLED: batch.cancelled,
        State.EXPIRED: batch.expired,
        State.INVALID: batch.invalid,
    }


def is_silent(worker: WorkerRow, now: float) -> bool:
    """Has it missed so many heartbeats that its jobs may be given to others?"""
    return now - worker.heartbeat_at > LEASE_SECONDS


def batch_facts(batch: BatchRow) -> dict[str, Any]:
    """A batch as `--json` shows it. Keys may be added, and keep their meaning; times are unix seconds."""
    return {
        "id": batch.public_id,
        "source": batch.source,
        "state": batch.state.value,
        "total": batch.total,
        "done": batch.done,
        **{state.value: count for state, count in finished_counts(batch).items()},
        "retried": batch.retried,
        "prompt_tokens": batch.prompt_tokens,
        "completion_tokens": batch.completion_tokens,
        "reasoning_tokens": batch.reasoning_tokens,
        "cached_tokens": batch.cached_tokens,
        "priority": batch.priority,
        "deadline": batch.deadline,
        **{name: getattr(batch, name) for name in handling.FIELDS},
        "created_at": batch.created_at,
        "started_at": batch.in_progress_at,
        "finished_at": batch.finished_at,
    }


def detail_facts(detail: Detail, *, now: float) -> dict[str, Any]:
    """A batch in detail as `--json` shows it."""
    return {
        "batch": batch_facts(detail.batch),
        "standstill": list(detail.standstill),
        "jobs": {state.value: detail.jobs.get(state, 0) for state in State},
        "lanes": [
            {
                "upstream": lane.upstream,
                "model": lane.model,
                "state": lane.state.value,
                "reason": lane.reason,
                "paused_until": lane.paused_until if lane.paused_until and lane.paused_until > now else None,
                "unfinished": left,
            }
            for lane, left in detail.lanes
        ],
        "calls": detail.calls,
        "failures": [
            {"code": why.code, "jobs": why.jobs, "message": why.message, "examples": list(why.examples)}
            for why in detail.failures
        ],
        "workers": [
            {
                "name": worker.name,
                "in_flight": worker.in_flight,
                "started_at": worker.started_at,
                "heartbeat_at": worker.heartbeat_at,
                "silent": is_silent(worker, now),
            }
            for worker in detail.workers
        ],
        "foresight": None if detail.outlook is None else msgspec.to_builtins(foresight_told(detail.outlook)),
        "bill": msgspec.to_builtins(bill_told(detail.bill)),
    }
