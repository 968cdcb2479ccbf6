"""running → finished, waiting, or ready again: what became of claimed jobs, many at a time, in one transaction.

Locks are taken in one order everywhere: jobs, then batches, then the lanes' sums, and of each kind by key. A batch's
counts move before its results are inserted. So who writes results of a batch holds the batch, and `results.id` rises in
the order of the commits: who follows a batch by it (an event stream) misses none.

Every ending is fenced: it applies only while the job still belongs to this worker at this epoch. What no longer does
was given to somebody else by the reaper; it is dropped and counted, never written.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import PLAIN, pack
from promptmill.engine import Database, is_conflict
from promptmill.job import FINISHED, BatchState, State
from promptmill.outcome import Answer, Outcome, Usage
from promptmill.store import sums
from promptmill.store.claims import Claimed
from promptmill.store.pauses import What, forget_in
from promptmill.store.rows import in_state
from promptmill.tables import attempts, batches, jobs, results

log = logging.getLogger("promptmill.store")

SUCCEEDED = "succeeded"  # an attempt's outcome, where it is not a Reason


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one claimed job.

    `state` is where it goes: a finished state, WAITING (until `not_before`) or READY. `attempts` is the number of
    counted attempts by now. `started_at` is None when no call was made, and then the ledger gets no row.
    """

    job: Claimed
    state: State
    outcome: Outcome
    attempts: int
    ended_at: float
    started_at: float | None = None
    not_before: float | None = None

    @property
    def is_final(self) -> bool:
        """Does the job leave with a result?"""
        return self.state in FINISHED


_ATTEMPT_COLUMNS = (
    "job_id", "epoch", "batch_id", "worker_id", "started_at", "duration_seconds", "outcome", "counted",
    "status_code", "prompt_tokens", "completion_tokens", "request_id", "message",
)  # fmt: skip
_RESULT_COLUMNS = (
    "batch_id", "position", "job_id", "lane_id", "file_id", "part", "state", "epoch", "attempts", "finished_at",
    "status_code", "content_type", "request_id", "error_code", "error_message", "prompt_tokens", "completion_tokens",
    "reasoning_tokens", "cached_tokens", "encoding", "body", "headers",
)  # fmt: skip

_NOTHING = Usage()


async def record(
    db: Database, *, worker_id: int, endings: Sequence[Ending], now: float, tally: sums.Tally | None = None
) -> int:
    """Write the endings; returns how many were dropped because the job had been taken away. With a `tally` the sums
    are added to now and then only; whoever keeps it sees to the last ones (`add_tally`)."""
    try:
        return await _record(db, worker_id, endings, now, tally)
    except Exception as error:
        if not is_conflict(error):
            raise
        # The ledger has a row for one of these calls, which should not be. That is no reason to lose what came of it.
        log.warning("the ledger has some of %d calls already; their first rows stay", len(endings))
        return await _record(db, worker_id, endings, now, tally, leave_known=True)


async def _record(
    db: Database,
    worker_id: int,
    endings: Sequence[Ending],
    now: float,
    tally: sums.Tally | None,
    *,
    leave_known: bool = False,
) -> int:
    made: list[sums.CallMade] = []
    is_due = False
    async with db.write() as connection:
        taken_out = await _taken_out(connection, worker_id, endings)
        owned = await _locked(db, connection, worker_id, endings) if taken_out is None else taken_out
        kept = [ending for ending in endings if (ending.job.job_id, ending.job.epoch) in owned]
        dropped = len(endings) - len(kept)
        if dropped:
            log.warning("dropped %d endings: the jobs were given to another worker meanwhile", dropped)
        if kept:
            calls = [ending for ending in kept if ending.started_at is not None]
            finished = [ending for ending in kept if ending.is_final]
            later = [ending for ending in kept if not ending.is_final]
            ledger = [_attempt_row(call, worker_id) for call in calls]
            insert = db.insert_unknown if leave_known else db.insert
            await insert(connection, attempts, _ATTEMPT_COLUMNS, ledger)
            if taken_out is None:
                await _leave(db, connection, finished)
            await _put_back(connection, later)
            await _count(connection, finished, later, now)
            await db.insert(connection, results, _RESULT_COLUMNS, [_result_row(ending) for ending in finished])
            made = [_call_made(call) for call in calls]
            is_due = tally is None or tally.is_due(len(made), now)
            if is_due:
                await sums.add(db, connection, made if tally is None else [*tally.calls, *made])
    if tally is not None:
        tally.calls = [] if is_due else [*tally.calls, *made]
        tally.added_at = now if is_due else tally.added_at
    return dropped


async def add_tally(db: Database, tally: sums.Tally, *, now: float) -> None:
    """Add what is left of it."""
    if tally.calls:
        async with db.write() as connection:
            await sums.add(db, connection, tally.calls)
        tally.calls, tally.added_at = [], now


async def _locked(
    db: Database, connection: AsyncConnection, worker_id: int, endings: Sequence[Ending]
) -> set[tuple[int, int]]:
    """(job id, epoch) of the jobs that are still this worker's."""
    rows = await connection.execute(
        sa.select(jobs.c.id, jobs.c.epoch)
        .where(db.any_of(jobs.c.id, [ending.job.job_id for ending in endings]))
        .where(jobs.c.worker_id == worker_id, in_state(State.RUNNING))
        .order_by(jobs.c.id)  # everyone locks in one order, so nobody waits for each other in a ring
        .with_for_update()
    )
    return {(job_id, epoch) for job_id, epoch in rows}


async def _taken_out(
    connection: AsyncConnection, worker_id: int, endings: Sequence[Ending]
) -> set[tuple[int, int]] | None:
    """A single job that is finished leaves `jobs` with one statement, which says whether it was ours; None for others.
    Somebody may be waiting for it."""
    if len(endings) != 1 or not endings[0].is_final:
        return None
    job = endings[0].job
    ours = sa.and_(jobs.c.id == job.job_id, jobs.c.epoch == job.epoch, jobs.c.worker_id == worker_id)
    gone = await connection.execute(sa.delete(jobs).where(ours, in_state(State.RUNNING)))
    return {(job.job_id, job.epoch)} if gone.rowcount else set()


async def _leave(db: Database, connection: AsyncConnection, finished: Sequence[Ending]) -> None:
    if not finished:
        return
    await connection.execute(sa.delete(jobs).where(db.any_of(jobs.c.id, [ending.job.job_id for ending in finished])))


async def _put_back(connection: AsyncConnection, later: Sequence[Ending]) -> None:
    if not later:
        return
    statement = (
        sa.update(jobs)
        .where(jobs.c.id == sa.bindparam("job_id"))
        .values(
            state=sa.bindparam("to_state"),
            worker_id=None,
            attempts=sa.bindparam("tried"),
            not_before=sa.bindparam("due"),
        )
    )
    await connection.execute(
        statement,
        [
            {"job_id": e.job.job_id, "to_state": e.state, "tried": e.attempts, "due": e.not_before}
            for e in sorted(later, key=lambda e: e.job.job_id)
        ],
    )


def _attempt_row(ending: Ending, worker_id: int) -> tuple[object, ...]:
    job, outcome = ending.job, ending.outcome
    started_at = ending.started_at or ending.ended_at
    if isinstance(outcome, Answer):
        name, message, usage = SUCCEEDED, None, outcome.usage
    else:
        name, message, usage = outcome.reason.value, _text(outcome.message), _NOTHING
    return (
        job.job_id, job.epoch, job.batch_id, worker_id, started_at, ending.ended_at - started_at,
        name, ending.attempts > job.attempts, outcome.status, usage.prompt_tokens, usage.completion_tokens,
        _text(outcome.request_id), message,
    )  # fmt: skip


def _call_made(ending: Ending) -> sums.CallMade:
    outcome, seconds = ending.outcome, ending.ended_at - (ending.started_at or ending.ended_at)
    if isinstance(outcome, Answer):
        usage = outcome.usage
        return sums.CallMade(
            ending.job.lane_id, SUCCEEDED, True, seconds, usage.prompt_tokens, usage.completion_tokens, ending.ended_at,
            ending.is_final,
        )  # fmt: skip
    return sums.CallMade(
        ending.job.lane_id, outcome.reason.value, False, seconds, ended_at=ending.ended_at, is_final=ending.is_final
    )


def _result_row(ending: Ending) -> tuple[object, ...]:
    job, outcome = ending.job, ending.outcome
    if isinstance(outcome, Answer):
        code = message = None
        usage = outcome.usage
    else:
        code, message, usage = outcome.reason.value, _text(outcome.message), _NOTHING
    encoding, body = pack(outcome.body) if outcome.body else (PLAIN, None)
    return (
        job.batch_id, job.position, job.job_id, job.lane_id, job.file_id, job.part, ending.state.value, job.epoch,
        ending.attempts, ending.ended_at, outcome.status, _text(outcome.content_type), _text(outcome.request_id), code,
        message, usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens, usage.cached_tokens,
        encoding, body, json.dumps(dict(outcome.headers)) if outcome.headers else None,
    )  # fmt: skip


def _text(value: str | None) -> str | None:
    """Text as both databases can hold it: PostgreSQL refuses NUL, and neither takes a lone surrogate."""
    if value is None or (value.isascii() and "\0" not in value):
        return value
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


async def _count(connection: AsyncConnection, finished: Sequence[Ending], later: Sequence[Ending], now: float) -> None:
    """Move the counts of every batch touched, in the order of their ids, and close those that are done."""
    moved: Counter[tuple[int, str]] = Counter()
    for ending in finished:
        batch_id = ending.job.batch_id
        moved[batch_id, ending.state.value] += 1
        if isinstance(ending.outcome, Answer):
            usage = ending.outcome.usage
            moved[batch_id, "prompt_tokens"] += usage.prompt_tokens
            moved[batch_id, "completion_tokens"] += usage.completion_tokens
            moved[batch_id, "reasoning_tokens"] += usage.reasoning_tokens
            moved[batch_id, "cached_tokens"] += usage.cached_tokens
    for ending in later:
        if ending.attempts > ending.job.attempts:
            moved[ending.job.batch_id, "retried"] += 1
    for batch_id in sorted({batch_id for batch_id, _ in moved}):
        changes = {name: batches.c[name] + n for (b, name), n in moved.items() if b == batch_id and n}
        if changes:
            counted = sa.update(batches).where(batches.c.id == batch_id).values(changes).returning(_IS_DONE)
            if (await connection.execute(counted)).scalar():
                await close_if_done(connection, batch_id, now)


_DONE = batches.c.succeeded + batches.c.failed + batches.c.cancelled + batches.c.expired + batches.c.invalid


#: No job is left, and none can be added.
_IS_DONE = sa.and_(batches.c.total <= _DONE, batches.c.is_open.is_(sa.false()))


async def close_if_done(connection: AsyncConnection, batch_id: int, now: float) -> None:
    """in_progress → completed or expired, cancelling → cancelled, once no job is left and none can be added."""
    too_late = sa.and_(sa.not_(batches.c.is_inbox), batches.c.expired > 0)  # an inbox has jobs of many
    state = sa.case(
        (batches.c.state == BatchState.CANCELLING, BatchState.CANCELLED.value),
        (too_late, BatchState.EXPIRED.value),
        else_=BatchState.COMPLETED.value,
    )
    closed = await connection.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, _IS_DONE)
        .where(batches.c.state.in_([BatchState.IN_PROGRESS, BatchState.CANCELLING]))
        .values(state=state, finished_at=now)
    )
    if closed.rowcount:
        await forget_in(connection, What.BATCH, batch_id)  # nothing is left that could be paused
