"""A batch as OpenAI's clients see it, and as Together's do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from api.dialects import Dialect
from api.dialects.batch_control import BatchControl, with_control
from promptmill.handling import NO_WINDOW
from promptmill.job import BATCH_FINISHED, BatchState
from promptmill.store.batches import BatchRow

#: Of a batch whose lines each say where they go.
ANY_ENDPOINT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What is told of a batch, in whatever words."""

    row: BatchRow
    #: "" where its jobs were added one by one.
    input_file_id: str
    input_bytes: int
    output_file_id: str | None
    error_file_id: str | None
    #: Where all of its jobs are on one lane.
    model: str | None
    path: str | None
    control: BatchControl


class Counts(msgspec.Struct):
    """How far it is."""

    total: int
    completed: int
    failed: int


class BatchFault(msgspec.Struct):
    """One thing that is wrong with the input."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchFaults(msgspec.Struct):
    """OpenAI's list of them."""

    object: str
    data: list[BatchFault]


class OpenAIBatch(msgspec.Struct, kw_only=True):
    """OpenAI's Batch."""

    id: str
    object: str
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    usage: dict[str, Any]
    metadata: dict[str, str] | None


class TogetherBatch(msgspec.Struct, kw_only=True):
    """Together's BatchJob; `request_counts` and `metadata` are OpenAI's."""

    id: str
    user_id: str
    input_file_id: str
    file_size_bytes: int
    status: str
    job_deadline: str | None
    created_at: str
    endpoint: str
    progress: float
    model_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    error: str | None
    completed_at: str | None
    request_counts: Counts
    metadata: dict[str, str] | None


OPENAI_BATCH: Final = with_control(OpenAIBatch)
TOGETHER_BATCH: Final = with_control(TogetherBatch)


def batch_object(facts: BatchFacts, dialect: Dialect) -> dict[str, Any]:
    """The batch in these words."""
    words = _together(facts) if dialect is Dialect.TOGETHER else _openai(facts)
    made: dict[str, Any] = {**msgspec.to_builtins(words), **msgspec.to_builtins(facts.control)}
    return made


def status_of(row: BatchRow) -> BatchState:
    """Where it is. A batch that is to be cancelled while its lines are read is `cancelling` until they are removed."""
    if row.state is BatchState.VALIDATING and row.cancelling_at is not None:
        return BatchState.CANCELLING
    return row.state


def counts_of(row: BatchRow) -> Counts:
    """Live: what was not answered, for whatever reason, has failed."""
    return Counts(row.total, row.succeeded, row.done - row.succeeded)


def _openai(facts: BatchFacts) -> OpenAIBatch:
    row = facts.row
    status = status_of(row)

    def when(*states: BatchState) -> int | None:
        return None if row.finished_at is None or status not in states else int(row.finished_at)

    return OpenAIBatch(
        id=row.public_id,
        object="batch",
        endpoint=_endpoint(facts),
        model=facts.model,
        errors=BatchFaults("list", _faults(row)) if row.errors else None,
        input_file_id=facts.input_file_id,
        completion_window=row.completion_window or ("24h" if row.deadline else NO_WINDOW),
        status=status.value,
        output_file_id=facts.output_file_id,
        error_file_id=facts.error_file_id,
        created_at=int(row.created_at),
        in_progress_at=_whole(row.in_progress_at),
        expires_at=_whole(row.deadline),
        finalizing_at=when(BatchState.COMPLETED, BatchState.EXPIRED),
        completed_at=when(BatchState.COMPLETED),
        failed_at=when(BatchState.FAILED),
        expired_at=when(BatchState.EXPIRED),
        cancelling_at=_whole(row.cancelling_at),
        cancelled_at=when(BatchState.CANCELLED),
        request_counts=counts_of(row),
        usage={
            "input_tokens": row.prompt_tokens,
            "input_tokens_details": {"cached_tokens": row.cached_tokens},
            "output_tokens": row.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": row.reasoning_tokens},
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        },
        metadata=_metadata(row),
    )


#: Together has no word for what is on its way to its end.
_TOGETHER: Final[Mapping[BatchState, str]] = {BatchState.CANCELLING: BatchState.IN_PROGRESS.value.upper()}


def _together(facts: BatchFacts) -> TogetherBatch:
    row = facts.row
    status = status_of(row)
    ended = row.finished_at if status in BATCH_FINISHED else None
    return TogetherBatch(
        id=row.public_id,
        user_id=f"tenant-{row.tenant_id}",
        input_file_id=facts.input_file_id,
        file_size_bytes=facts.input_bytes,
        status=_TOGETHER.get(status, status.value.upper()),
        job_deadline=_iso(row.deadline),
        created_at=_iso(row.created_at) or "",
        endpoint=_endpoint(facts),
        progress=_progress(row, status),
        model_id=facts.model,
        output_file_id=facts.output_file_id,
        error_file_id=facts.error_file_id,
        error="; ".join(_sentence(fault) for fault in _faults(row)[:3]) if row.errors else None,
        completed_at=_iso(ended),
        request_counts=counts_of(row),
        metadata=_metadata(row),
    )


def _progress(row: BatchRow, status: BatchState) -> float:
    if status is BatchState.COMPLETED:
        return 100.0
    return round(100.0 * row.done / row.total, 2) if row.total else 0.0


def _sentence(fault: BatchFault) -> str:
    return fault.message if fault.line is None else f"line {fault.line}: {fault.message}"


def _faults(row: BatchRow) -> list[BatchFault]:
    return msgspec.json.decode(row.errors, type=list[BatchFault]) if row.errors else []


def _metadata(row: BatchRow) -> dict[str, str] | None:
    return None if row.metadata is None else msgspec.json.decode(row.metadata, type=dict[str, str])


def _endpoint(facts: BatchFacts) -> str:
    return facts.row.endpoint or facts.path or ANY_ENDPOINT


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
