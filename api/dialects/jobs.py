"""A job as the API shows it. It is ours alone: neither OpenAI nor Together has one."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from promptmill.engine import Database
from promptmill.output import result_line
from promptmill.store import jobs, results
from promptmill.store.jobs import AttemptRow, JobRow


class SubmittedObject(msgspec.Struct, kw_only=True):
    """What is said of jobs that were taken."""

    object: str
    ids: list[str]
    id: str | None = None
    status: str | None = None
    data: list[dict[str, Any]] | None = None


class JobPage(msgspec.Struct, kw_only=True):
    """Jobs, the newest first."""

    object: str
    data: list["ListedJob"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class AttemptObject(msgspec.Struct, kw_only=True):
    """One upstream call. `outcome` is "succeeded" or a reason (docs/states.md); one that is not `counted` was given
    back, since waiting is not failing."""

    number: int
    started_at: float | None
    started: str | None
    duration_seconds: float | None
    outcome: str
    counted: bool
    status_code: int | None
    message: str | None
    request_id: str | None
    prompt_tokens: int
    completion_tokens: int


class ListedJob(msgspec.Struct, kw_only=True):
    """A job in a list."""

    id: str
    object: str
    status: str
    batch_id: str
    custom_id: str | None
    model: str | None
    priority: int
    created_at: int
    not_before: float | None
    deadline: float | None
    finished_at: float | None
    metadata: dict[str, str] | None
    error_code: str | None
    attempt_count: int
    usage: dict[str, int]


class JobObject(ListedJob, kw_only=True):
    """A job. `result` is a line of OpenAI's output shape, null until the job is finished."""

    attempts: list[AttemptObject]
    result: dict[str, Any] | None


def job_object(row: JobRow) -> dict[str, Any]:
    """A job in a list: all that one row tells."""
    usage = row.usage
    return {
        "id": row.public_id,
        "object": "job",
        "status": row.state.value,
        "batch_id": row.batch_public_id,
        "custom_id": row.custom_id,
        "model": row.model,
        "priority": row.priority,
        "created_at": int(row.created_at),
        "not_before": row.not_before,
        "deadline": row.deadline,
        "finished_at": row.finished_at,
        "metadata": None if row.metadata is None else msgspec.json.decode(row.metadata),
        "error_code": row.error_code,
        "attempt_count": row.attempts,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "cached_tokens": usage.cached_tokens,
            "total_tokens": usage.total_tokens,
        },
    }


def _attempt(row: AttemptRow) -> dict[str, Any]:
    return {
        "number": row.epoch,
        "started_at": row.started_at,
        "started": None if row.started_at is None else datetime.fromtimestamp(row.started_at, UTC).isoformat(),
        "duration_seconds": row.duration_seconds,
        "outcome": row.outcome,
        "counted": row.counted,
        "status_code": row.status_code,
        "message": row.message,
        "request_id": row.request_id,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
    }


async def full_job(db: Database, row: JobRow) -> bytes:
    """A job with its attempts and its result, as JSON; the upstream's answer stands in it byte for byte."""
    attempts = [_attempt(attempt) for attempt in await jobs.ledger(db, row.job_id)]
    facts = msgspec.json.encode({**job_object(row), "attempts": attempts})
    found = await results.of_jobs(db, row.key[0], [row.key[1]])
    result = result_line(found[0], row.batch_public_id).rstrip(b"\n") if found else b"null"
    return facts[:-1] + b',"result":' + result + b"}"
