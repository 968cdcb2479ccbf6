"""What a producer may ask of a batch, read and checked."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from api.errors import invalid
from api.handling_terms import HANDLING, HandlingRequest, field_refused, handling_of
from api.jobs import METADATA, check_metadata
from api.priorities import PRIORITY
from promptmill import handling
from promptmill.errors import UsageError
from promptmill.handling import NO_WINDOW, Handling
from promptmill.kinds import PATHS, known_path

MIN_OUTPUT_SECONDS: Final = 3_600
MAX_OUTPUT_SECONDS: Final = 2_592_000

DEFAULT_WINDOW: Final = "24h"
#: What the OpenAPI document says of a window.
WINDOW: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": f"^([0-9]{{1,9}}[smhd]|{NO_WINDOW})$",
    "description": "90m, 24h, 7d (365 days at most), or background: as long as it takes.",
}


class ExpiresAfter(msgspec.Struct):
    """When the output file goes."""

    anchor: str
    seconds: int


class BatchRequest(HandlingRequest, kw_only=True):
    """OpenAI's and Together's body in one; `open`, `dry_run`, and how it is to be handled, are ours."""

    input_file_id: str | None = None
    endpoint: str | None = None
    completion_window: str | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: int | str | None = None
    model_id: str | None = None
    open: bool = False
    dry_run: bool = False


#: What the OpenAPI document says of it.
BODY: Final[dict[str, Any]] = {
    "type": "object",
    "anyOf": [
        {"required": ["input_file_id", "endpoint"]},
        {"required": ["open"], "properties": {"open": {"const": True}}},
    ],
    "properties": {
        "input_file_id": {"type": "string", "description": "A file of purpose batch or batch-api."},
        "endpoint": {"type": "string", "description": "Where the lines go.", "enum": list(PATHS)},
        "completion_window": {**WINDOW, "default": DEFAULT_WINDOW},
        "metadata": METADATA,
        "output_expires_after": {
            "type": "object",
            "required": ["anchor", "seconds"],
            "properties": {
                "anchor": {"type": "string", "enum": ["created_at"]},
                "seconds": {"type": "integer", "minimum": MIN_OUTPUT_SECONDS, "maximum": MAX_OUTPUT_SECONDS},
            },
        },
        "priority": PRIORITY,
        "model_id": {"type": "string", "minLength": 1, "description": "For lines that name no model."},
        "open": {"type": "boolean", "default": False, "description": "Jobs can be added until it is sealed."},
        "dry_run": {"type": "boolean", "default": False, "description": "Make none; say what is to be expected."},
        **HANDLING,
    },
}


def path_of(wanted: BatchRequest) -> str | None:
    """The endpoint as it stands in PATHS; None: each line says it (an open batch only). Raises ApiError."""
    if wanted.endpoint is None:
        if wanted.open:
            return None
        raise invalid("endpoint is missing.", param="endpoint", code="missing_required_parameter")
    path = known_path(wanted.endpoint)
    if path is None:
        raise invalid(
            f"The endpoint {wanted.endpoint[:100]!r} is not one of {', '.join(PATHS)}.",
            param="endpoint", code="invalid_endpoint",
        )  # fmt: skip
    return path


def window_of(wanted: BatchRequest, now: float, not_before: float | None) -> tuple[str, float | None]:
    """The window as it is shown, and when it closes. Raises ApiError."""
    text = DEFAULT_WINDOW if wanted.completion_window is None else wanted.completion_window
    try:
        return text, handling.deadline(text, made_at=now, not_before=not_before)
    except UsageError as error:
        raise field_refused(error) from None


def handling_asked(wanted: BatchRequest) -> Handling:
    """How it is to be handled. Raises ApiError."""
    if wanted.open and wanted.input_file_id is None and wanted.canary:
        raise invalid("A batch that has no jobs yet can have no canary; make it of a file.", param="canary")
    return handling_of(wanted)


def metadata_of(metadata: Mapping[str, str] | None) -> str | None:
    """As it is stored. Raises ApiError."""
    check_metadata(metadata)
    return None if metadata is None else msgspec.json.encode(metadata).decode()


def output_seconds_of(wanted: BatchRequest) -> int | None:
    """How long the output is kept. Raises ApiError."""
    after = wanted.output_expires_after
    if after is None:
        return None
    if after.anchor != "created_at":
        raise invalid("output_expires_after.anchor must be created_at.", param="output_expires_after.anchor")
    if not MIN_OUTPUT_SECONDS <= after.seconds <= MAX_OUTPUT_SECONDS:
        raise invalid(
            f"output_expires_after.seconds must lie between {MIN_OUTPUT_SECONDS} and {MAX_OUTPUT_SECONDS}.",
            param="output_expires_after.seconds",
        )
    return after.seconds
