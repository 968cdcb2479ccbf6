"""What came out: results streamed in input order or as they finished, also while the batch runs."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.job import State
from promptmill.outcome import Usage
from promptmill.store.rows import last_within
from promptmill.tables import attempts, file_parts, lanes, results

Order = Literal["input", "finished"]

_READ_AHEAD = 500
_READ_AHEAD_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """The committed outcome of a job. `body` is the upstream's answer, byte for byte; empty where there was none."""

    id: int
    job_id: int
    position: int
    line: int | None
    custom_id: str | None
    model: str
    state: State
    attempts: int
    finished_at: float
    status_code: int | None
    content_type: str
    request_id: str | None
    error_code: str | None
    error_message: str | None
    usage: Usage
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)  # of the upstream's, where the caller waited
    epoch: int = 0  # of the attempt that brought it


_COLUMNS = (
    results.c.id, results.c.job_id, results.c.position, file_parts.c.line, file_parts.c.custom_id, lanes.c.model,
    results.c.state, results.c.attempts, results.c.finished_at, results.c.status_code, results.c.content_type,
    results.c.request_id, results.c.error_code, results.c.error_message, results.c.prompt_tokens,
    results.c.completion_tokens, results.c.reasoning_tokens, results.c.cached_tokens, results.c.encoding,
    results.c.body, results.c.headers, results.c.epoch,
)  # fmt: skip


def _result(row: Any) -> Result:
    (id_, job_id, position, line, custom_id, model, state, tried, finished_at, status, content_type, request_id, code,
     message, prompt, completion, reasoning, cached, encoding, body, headers, epoch) = row  # fmt: skip
    return Result(
        id_, job_id, position, line, custom_id, model or "", State(state), tried, finished_at, status,
        content_type or "", request_id, code, message, Usage(prompt, completion, reasoning, cached),
        unpack(encoding, body) if body is not None else b"", json.loads(headers) if headers else {}, epoch,
    )  # fmt: skip


async def stream(
    db: Database, batch_id: int, *, order: Order = "input", states: Iterable[State] | None = None, after: int = -1
) -> AsyncIterator[Result]:
    """The batch's results so far, from behind `after` on (a position, or an id). No transaction is held between the
    reads, and memory stays flat: answers of some megabytes are read a few at a time."""
    key = results.c.position if order == "input" else results.c.id
    theirs = sa.and_(results.c.batch_id == batch_id, key > sa.bindparam("after"))
    if states is not None:
        theirs = sa.and_(theirs, results.c.state.in_([state.value for state in states]))
    length = sa.func.coalesce(sa.func.length(results.c.body), 0)
    sizes = sa.select(key, length).where(theirs).order_by(key).limit(_READ_AHEAD)
    statement = (
        sa.select(*_COLUMNS)
        .outerjoin(file_parts, sa.and_(file_parts.c.file_id == results.c.file_id, file_parts.c.part == results.c.part))
        .outerjoin(lanes, lanes.c.id == results.c.lane_id)
        .where(theirs, key <= sa.bindparam("last"))
        .order_by(key)
    )
    while True:
        async with db.read() as connection:
            found = (await connection.execute(sizes, {"after": after})).all()
            if not found:
                return
            last = last_within([(number, size) for number, size in found], _READ_AHEAD_BYTES)
            rows = (await connection.execute(statement, {"after": after, "last": last})).all()
        for row in rows:
            yield _result(row)
        after = last


async def of_jobs(db: Database, batch_id: int, positions: Iterable[int]) -> list[Result]:
    """The results of these jobs of a batch, of those that have one."""
    statement = (
        sa.select(*_COLUMNS)
        .outerjoin(file_parts, sa.and_(file_parts.c.file_id == results.c.file_id, file_parts.c.part == results.c.part))
        .outerjoin(lanes, lanes.c.id == results.c.lane_id)
        .where(results.c.batch_id == batch_id, db.any_of(results.c.position, positions))
    )
    async with db.read() as connection:
        return [_result(row) for row in await connection.execute(statement)]


async def failure_counts(db: Database, batch_id: int) -> list[tuple[str, int, str]]:
    """(error code, jobs, one of their messages) of what did not succeed, the most frequent first."""
    async with db.read() as connection:
        count = sa.func.count().label("jobs")
        rows = await connection.execute(
            sa.select(results.c.error_code, count, sa.func.min(results.c.error_message))
            .where(results.c.batch_id == batch_id, results.c.error_code.is_not(None))
            .group_by(results.c.error_code)
            .order_by(count.desc())
        )
        return [(code, jobs, message or "") for code, jobs, message in rows]


async def call_counts(db: Database, batch_id: int) -> dict[str, int]:
    """Outcome → upstream calls, from the ledger."""
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(attempts.c.outcome, sa.func.count())
            .where(attempts.c.batch_id == batch_id)
            .group_by(attempts.c.outcome)
        )
        return {outcome: int(calls) for outcome, calls in rows}
