"""What people ask about single jobs, and what is told of them: look, list.

A job is named by its batch's public id and its position. It is a row of `jobs` until it is finished, and then one of
`results`; whoever asks need not know which.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import NotFound
from promptmill.hints import JobKey
from promptmill.job import State, job_public_id
from promptmill.outcome import Usage
from promptmill.tables import attempts, batches, file_parts, job_notes, jobs, lanes, results

_JOB_ID: Final = re.compile(r"job_([0-9a-f]{32})-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as it stands now. Of a finished one `not_before` and `deadline` are not known any more."""

    key: JobKey
    public_id: str
    batch_public_id: str
    in_inbox: bool
    job_id: int
    state: State
    priority: int
    attempts: int
    not_before: float | None
    deadline: float | None
    finished_at: float | None
    created_at: float
    custom_id: str | None
    upstream: str | None
    model: str | None
    metadata: str | None
    error_code: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One upstream call, as the ledger has it."""

    epoch: int
    started_at: float | None
    duration_seconds: float | None
    outcome: str
    counted: bool
    status_code: int | None
    prompt_tokens: int
    completion_tokens: int
    request_id: str | None
    message: str | None


def parsed_id(public_id: str) -> tuple[str, int] | None:
    """(public id of the batch, position) of a job's public id; None where it is none.

    >>> parsed_id("job_0123456789abcdef0123456789abcdef-7")
    ('batch_0123456789abcdef0123456789abcdef', 7)
    """
    found = _JOB_ID.fullmatch(public_id)
    return (f"batch_{found[1]}", int(found[2])) if found else None


async def get(db: Database, public_id: str, *, tenant_id: int | None) -> JobRow | None:
    """The job; None where there is none, or it is another tenant's. Without a tenant it may be anybody's."""
    named = parsed_id(public_id)
    if named is None:
        return None
    batch_public_id, position = named
    statement = sa.select(batches.c.id).where(batches.c.public_id == batch_public_id)
    if tenant_id is not None:
        statement = statement.where(batches.c.tenant_id == tenant_id)
    async with db.read() as connection:
        batch_id = (await connection.execute(statement)).scalar()
    if batch_id is None:
        return None
    found = await _page(db, batch_id, above=position, limit=1, states=None)
    return found[0] if found and found[0].key[1] == position else None


async def ledger(db: Database, job_id: int) -> list[AttemptRow]:
    """The job's upstream calls, in their order."""
    columns = [attempts.c[name] for name in AttemptRow.__dataclass_fields__]
    statement = sa.select(*columns).where(attempts.c.job_id == job_id).order_by(attempts.c.epoch)
    async with db.read() as connection:
        return [AttemptRow(*row) for row in await connection.execute(statement)]


async def public_id_of(db: Database, key: JobKey, *, tenant_id: int) -> str:
    """The job's public id. Raises NotFound."""
    statement = sa.select(batches.c.public_id).where(batches.c.id == key[0], batches.c.tenant_id == tenant_id)
    async with db.read() as connection:
        found = (await connection.execute(statement)).scalar()
    if found is None:
        raise NotFound(f"no batch {key[0]}")
    return job_public_id(found, key[1])


async def listed(
    db: Database,
    *,
    tenant_id: int,
    batch_id: int | None,
    after: JobKey | None,
    states: Collection[State] | None,
    limit: int,
) -> list[JobRow]:
    """The tenant's jobs from behind `after` on: those of a batch, or all that were submitted singly, which is inbox
    after inbox; the newest first in each."""
    statement = sa.select(batches.c.id).where(batches.c.tenant_id == tenant_id).order_by(batches.c.id.desc())
    if batch_id is not None:
        statement = statement.where(batches.c.id == batch_id)
    else:
        statement = statement.where(batches.c.is_inbox)
    if after is not None:
        statement = statement.where(batches.c.id <= after[0])
    async with db.read() as connection:
        batch_ids = list((await connection.execute(statement)).scalars())
    found: list[JobRow] = []
    for each in batch_ids:
        below = after[1] if after is not None and after[0] == each else None
        found += await _page(db, each, below=below, limit=limit - len(found), states=states)
        if len(found) >= limit:
            break
    return found


_NOTHING: Final = sa.literal(None)


async def _page(
    db: Database,
    batch_id: int,
    *,
    limit: int,
    states: Collection[State] | None,
    above: int | None = None,
    below: int | None = None,
) -> list[JobRow]:
    """Jobs of a batch: from position `above` upwards, or the last ones below `below`, downwards."""
    now = sa.select(
        jobs.c.id.label("job_id"), jobs.c.position, jobs.c.state, jobs.c.attempts, jobs.c.not_before, jobs.c.deadline,
        sa.cast(_NOTHING, sa.Double).label("finished_at"), jobs.c.lane_id, jobs.c.file_id, jobs.c.part,
        sa.cast(_NOTHING, sa.Text).label("error_code"), *(sa.literal(0).label(name) for name in _TOKENS),
    ).where(jobs.c.batch_id == batch_id)  # fmt: skip
    done = sa.select(
        results.c.job_id, results.c.position, results.c.state, results.c.attempts,
        sa.cast(_NOTHING, sa.Double), sa.cast(_NOTHING, sa.Double), results.c.finished_at, results.c.lane_id,
        results.c.file_id, results.c.part, results.c.error_code, *(results.c[name] for name in _TOKENS),
    ).where(results.c.batch_id == batch_id)  # fmt: skip
    halves = []
    for half, table in ((now, jobs), (done, results)):
        chosen = half
        if states is not None:
            chosen = chosen.where(table.c.state.in_([state.value for state in states]))
        if above is not None:
            chosen = chosen.where(table.c.position >= above).order_by(table.c.position)
        else:
            if below is not None:
                chosen = chosen.where(table.c.position < below)
            chosen = chosen.order_by(table.c.position.desc())
        halves.append(sa.select(chosen.limit(limit).subquery()))
    both = sa.union_all(*halves).subquery()
    statement = (
        sa.select(
            both, batches.c.public_id, batches.c.is_inbox, batches.c.priority, batches.c.created_at, lanes.c.upstream,
            lanes.c.model, file_parts.c.custom_id, job_notes.c.created_at.label("noted_at"), job_notes.c.metadata,
        )
        .select_from(both)
        .join(batches, batches.c.id == batch_id)
        .outerjoin(lanes, lanes.c.id == both.c.lane_id)
        .outerjoin(file_parts, sa.and_(file_parts.c.file_id == both.c.file_id, file_parts.c.part == both.c.part))
        .outerjoin(job_notes, sa.and_(job_notes.c.batch_id == batch_id, job_notes.c.position == both.c.position))
        .order_by(both.c.position if above is not None else both.c.position.desc())
        .limit(limit)
    )  # fmt: skip
    async with db.read() as connection:
        return [_job(batch_id, row) for row in await connection.execute(statement)]


_TOKENS: Final = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens")


def _job(batch_id: int, row: Any) -> JobRow:
    return JobRow(
        key=(batch_id, row.position),
        public_id=job_public_id(row.public_id, row.position),
        batch_public_id=row.public_id,
        in_inbox=row.is_inbox,
        job_id=row.job_id,
        state=State(row.state),
        priority=row.priority,
        attempts=row.attempts,
        not_before=row.not_before,
        deadline=row.deadline,
        finished_at=row.finished_at,
        created_at=row.created_at if row.noted_at is None else row.noted_at,
        custom_id=row.custom_id,
        upstream=row.upstream,
        model=row.model,
        metadata=row.metadata,
        error_code=row.error_code,
        usage=Usage(*(getattr(row, name) for name in _TOKENS)),
    )
