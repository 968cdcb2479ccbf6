"""What a producer may ask of a schedule, read and checked."""

from dataclasses import replace
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from api.batch_terms import DEFAULT_WINDOW, WINDOW, metadata_of
from api.call_schemas import any_call
from api.errors import invalid
from api.handling_terms import HANDLING, HandlingRequest, field_refused, given
from api.jobs import METADATA
from api.priorities import PRIORITY, priority
from api.times import LATEST, moment
from promptmill import handling, schedules
from promptmill.errors import UsageError
from promptmill.handling import Handling, window_seconds
from promptmill.kinds import PATHS, known_path
from promptmill.request import Defaults
from promptmill.schedules import CATCH_UP, Missed, Overlap, Schedule
from promptmill.store.schedules import Terms

MAX_REQUESTS: Final = 10_000
_MAX_NAME: Final = 200


class ScheduledRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A line of a batch file."""

    body: Raw | UnsetType = UNSET
    custom_id: str | None = None
    method: str | None = None
    url: str | None = None


class ScheduleRequest(HandlingRequest, kw_only=True, forbid_unknown_fields=True):
    """A schedule to make, or what is to be other than it was."""

    name: str | UnsetType = UNSET
    cron: str | UnsetType | None = UNSET
    at: float | str | UnsetType | None = UNSET
    timezone: str | UnsetType = UNSET
    zone: str | UnsetType = UNSET
    starts_at: float | str | UnsetType | None = UNSET
    ends_at: float | str | UnsetType | None = UNSET
    missed: str | UnsetType = UNSET
    catch_up: int | UnsetType = UNSET
    grace_seconds: float | UnsetType = UNSET
    overlap: str | UnsetType = UNSET
    jitter_seconds: float | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    input_file_id: str | UnsetType | None = UNSET
    requests: list[ScheduledRequest] | UnsetType | None = UNSET
    endpoint: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    completion_window: str | UnsetType = UNSET
    priority: int | str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET


_MOMENT: Final = {
    "description": "Unix seconds, or RFC 3339; without an offset, what a clock in `timezone` shows.",
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": LATEST},
        {"type": "string", "format": "date-time"},
        {"type": "null"},
    ],
}
_ZONE: Final = {"type": "string", "description": "A name of the IANA database; UTC, where nothing else is said."}
_SECONDS: Final = {"type": "number", "minimum": 0}
_REQUEST: Final = {
    "type": "object",
    "required": ["body"],
    "properties": {
        "custom_id": {"type": "string"},
        "method": {"type": "string", "enum": ["POST"]},
        "url": {"enum": list(PATHS)},
        "body": any_call(names_model=False),
    },
}
_FIELDS: Final[dict[str, Any]] = {
    "name": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME},
    "cron": {"type": ["string", "null"], "description": "minute hour day-of-month month day-of-week, or @daily."},
    "at": _MOMENT,
    "timezone": _ZONE,
    "zone": _ZONE,
    "starts_at": _MOMENT,
    "ends_at": _MOMENT,
    "missed": {"type": "string", "enum": list(Missed), "default": Missed.ONCE.value},
    "catch_up": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": CATCH_UP},
    "grace_seconds": {**_SECONDS, "default": 60},
    "overlap": {"type": "string", "enum": list(Overlap), "default": Overlap.ALLOW.value},
    "jitter_seconds": {**_SECONDS, "default": 0},
    "enabled": {"type": "boolean", "default": True},
    "input_file_id": {"type": ["string", "null"], "description": "A file of purpose batch or batch-api."},
    "requests": {"type": ["array", "null"], "minItems": 1, "maxItems": MAX_REQUESTS, "items": _REQUEST},
    "endpoint": {"enum": [*PATHS, None], "description": "Where the lines go; else each says it."},
    "model": {"type": ["string", "null"], "minLength": 1, "description": "For lines that name no model."},
    "completion_window": {**WINDOW, "default": DEFAULT_WINDOW},
    "priority": PRIORITY,
    "metadata": {"anyOf": [METADATA, {"type": "null"}]},
    **{name: told for name, told in HANDLING.items() if name != "not_before"},
}
#: What the OpenAPI document says of a change, and of a schedule that is made.
CHANGE: Final[dict[str, Any]] = {"type": "object", "properties": _FIELDS}
BODY: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name"],
    "properties": _FIELDS,
    "allOf": [
        {"anyOf": [{"required": ["cron"]}, {"required": ["at"]}]},
        {"anyOf": [{"required": ["input_file_id"]}, {"required": ["requests"]}]},
    ],
}


def name_of(wanted: ScheduleRequest, before: str | None = None) -> str:
    """Its name. Raises ApiError."""
    if isinstance(wanted.name, UnsetType):
        if before is None:
            raise invalid("name is missing.", param="name", code="missing_required_parameter")
        return before
    if not wanted.name.strip() or len(wanted.name) > _MAX_NAME or not wanted.name.isprintable():
        raise invalid(f"name must have 1 to {_MAX_NAME} printable characters.", param="name")
    return wanted.name


def when_of(wanted: ScheduleRequest, before: Schedule, now: float) -> Schedule:
    """When it is to fire: as before, but for what is said otherwise. Raises ApiError."""
    asked = {
        name: value
        for name in ("cron", "catch_up", "grace_seconds", "jitter_seconds")
        if (value := getattr(wanted, name)) is not UNSET
    }
    zone = next((each for each in (wanted.timezone, wanted.zone) if not isinstance(each, UnsetType)), before.zone)
    asked["zone"] = zone
    asked |= _policies(wanted)
    for name in ("at", "starts_at", "ends_at"):
        if (value := getattr(wanted, name)) is not UNSET:
            asked[name] = _moment(value, name, zone)
    if asked.get("cron") is not None:  # one instead of the other
        asked.setdefault("at", None)
    elif asked.get("at") is not None:
        asked.setdefault("cron", None)
    when = replace(before, **asked)
    if when.cron is None and when.at is None:
        raise invalid("Say when it is to fire: cron, or at.", param="cron", code="missing_required_parameter")
    try:
        if when != before:
            schedules.check(when, now=now)
    except UsageError as error:
        raise invalid(_sentence(error), param=_blamed(str(error), when)) from None
    return when


def _policies(wanted: ScheduleRequest) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name, known in (("missed", Missed), ("overlap", Overlap)):
        if (value := getattr(wanted, name)) is not UNSET:
            if value not in list(known):
                raise invalid(f"{name} must be one of {', '.join(known)}.", param=name)
            asked[name] = known(value)
    return asked


def _moment(value: float | str | None, name: str, zone: str) -> float | None:
    if not isinstance(value, str):
        return moment(value, name)
    try:
        return schedules.moment(value, zone)
    except UsageError as error:
        raise invalid(_sentence(error), param=_blamed(str(error), None) or name) from None


def _sentence(error: UsageError) -> str:
    words = str(error)
    return f"{words[:1].upper()}{words[1:]}."


def _blamed(words: str, when: Schedule | None) -> str | None:
    """The field that the words are about, as far as one can tell."""
    first = words.partition(" ")[0]
    if first in ("starts_at", "ends_at", "at", "catch_up", "jitter_seconds", "grace_seconds"):
        return first
    if "is no time zone" in words:
        return "timezone"
    if when is not None and when.ends_at is not None and "would never fire" in words:
        return "ends_at"
    return None if when is None else "at" if when.cron is None else "cron"


def terms_of(wanted: ScheduleRequest, before: Terms) -> Terms:
    """What its fires submit, and how: as before, but for what is said otherwise. Raises ApiError."""
    asked: dict[str, Any] = {}
    if wanted.not_before is not UNSET:
        raise invalid("A schedule has no not_before; say starts_at.", param="not_before")
    if not isinstance(wanted.completion_window, UnsetType):
        asked["completion_window"] = wanted.completion_window
    if not isinstance(wanted.priority, UnsetType):
        asked["priority"] = priority(wanted.priority)
    if not isinstance(wanted.metadata, UnsetType):
        asked["metadata"] = metadata_of(wanted.metadata)
    if not isinstance(wanted.endpoint, UnsetType):
        asked["endpoint"] = _path_of(wanted.endpoint)
    try:
        window_seconds(asked.get("completion_window", before.completion_window))
        asked["handling"] = replace(before.handling, **given(wanted))
        handling.check(asked["handling"])
    except UsageError as error:
        raise field_refused(error) from None
    endpoint = asked.get("endpoint", before.endpoint)
    model = Defaults.from_json(before.defaults).model if isinstance(wanted.model, UnsetType) else wanted.model
    try:
        asked["defaults"] = Defaults(model=model, endpoint=endpoint).to_json()
    except UsageError as error:
        raise invalid(f"{error}.", param="model") from None
    return replace(before, **asked)


def no_terms(max_attempts: int) -> Terms:
    """Those of a schedule that says nothing."""
    return Terms(
        file_id=0, source="", has_templates=False, defaults="{}", handling=Handling(), priority=0,
        completion_window=DEFAULT_WINDOW, max_attempts=max_attempts,
    )  # fmt: skip


def _path_of(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    path = known_path(endpoint)
    if path is None:
        raise invalid(
            f"The endpoint {endpoint[:100]!r} is not one of {', '.join(PATHS)}.",
            param="endpoint", code="invalid_endpoint",
        )  # fmt: skip
    return path


def lines_of(requests: list[ScheduledRequest]) -> list[bytes]:
    """The same as lines of a batch file. Raises ApiError."""
    if not 0 < len(requests) <= MAX_REQUESTS:
        raise invalid(f"requests must have 1 to {MAX_REQUESTS:,} of them; it has {len(requests):,}.", param="requests")
    return [_envelope(one) + b"\n" for one in requests]


def _envelope(one: ScheduledRequest) -> bytes:
    members: dict[str, Any] = {"custom_id": one.custom_id, "method": one.method, "url": one.url}
    told = {name: value for name, value in members.items() if value is not None}
    body = Raw(b"null") if isinstance(one.body, UnsetType) else one.body
    # A body may be spread over lines; between its tokens a space does as well.
    written = msgspec.json.encode({**told, "body": body})
    return written.replace(b"\n", b" ").replace(b"\r", b" ")
