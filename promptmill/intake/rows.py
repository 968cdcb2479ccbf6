"""A checked line as rows of the tables."""

from typing import Final

from promptmill.content import PLAIN
from promptmill.errors import LineError
from promptmill.job import State
from promptmill.request import ParsedLine

JOB_COLUMNS: Final = (
    "batch_id", "position", "lane_id", "file_id", "part", "state", "epoch", "attempts", "not_before", "deadline",
    "bytes", "tokens", "max_tokens",
)  # fmt: skip
INVALID_COLUMNS: Final = (
    "batch_id", "position", "job_id", "lane_id", "file_id", "part", "state", "epoch", "attempts", "finished_at",
    "error_code", "error_message", "prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens",
    "encoding",
)  # fmt: skip

Row = tuple[object, ...]


def job_row(
    parsed: ParsedLine,
    *,
    batch_id: int,
    position: int,
    lane_id: int,
    file_id: int,
    part: int,
    now: float,
    not_before: float | None,
    deadline: float | None,
) -> Row:
    """A job that may be claimed now, or from `not_before` on: the values of JOB_COLUMNS."""
    waits = not_before is not None and not_before > now
    return (
        batch_id, position, lane_id, file_id, part, State.WAITING.value if waits else State.READY.value, 0, 0,
        not_before if waits else None, deadline, parsed.body_bytes, parsed.prompt_tokens, parsed.max_tokens,
    )  # fmt: skip


def invalid_row(batch_id: int, position: int, file_id: int, error: LineError, now: float) -> Row:
    """The result of a line that is wrong and was skipped: the values of INVALID_COLUMNS."""
    return (
        batch_id, position, 0, 0, file_id, position, State.INVALID.value, 0, 0, now,
        error.code, str(error), 0, 0, 0, 0, PLAIN,
    )  # fmt: skip
