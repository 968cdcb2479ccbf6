"""How a batch is to be handled beside others (weight, caps, budget, canary, start), as callers write it."""

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from api.errors import invalid
from api.times import MOMENT, moment
from promptmill import handling
from promptmill.errors import UsageError
from promptmill.handling import AfterCanary, Handling


class HandlingRequest(msgspec.Struct, kw_only=True):
    """Of a body that has more. Left out: as it is, or the default; null: none."""

    weight: float | UnsetType = UNSET
    max_in_flight: int | UnsetType | None = UNSET
    requests_per_minute: float | UnsetType | None = UNSET
    tokens_per_minute: float | UnsetType | None = UNSET
    budget_tokens: int | UnsetType | None = UNSET
    budget_cost: float | UnsetType | None = UNSET
    canary: int | UnsetType | None = UNSET
    canary_percent: float | UnsetType = UNSET
    canary_then: str | UnsetType = UNSET
    not_before: float | str | UnsetType | None = UNSET


def _positive(kind: str, description: str, **bounds: Any) -> dict[str, Any]:
    least = {"minimum": 1} if kind == "integer" else {"exclusiveMinimum": 0}
    return {"type": [kind, "null"], **least, **bounds, "description": description}


_WEIGHT: Final = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": handling.MOST_WEIGHT,
    "description": "Its share beside others of its class; 1, where nothing else is said.",
}
#: What may be capped, of a batch or of a tenant, in the OpenAPI document.
CAPS: Final[dict[str, Any]] = {
    "weight": _WEIGHT,
    "max_in_flight": _positive("integer", "Calls at once, at most.", maximum=handling.MOST["max_in_flight"]),
    "requests_per_minute": _positive("number", "Calls that start in a minute, at most."),
    "tokens_per_minute": _positive("number", "Tokens in a minute, at most."),
}
#: The fields of a HandlingRequest in the OpenAPI document.
HANDLING: Final[dict[str, Any]] = {
    **CAPS,
    "budget_tokens": _positive(
        "integer", "The batch is paused when it has spent so many.", maximum=handling.MOST["budget_tokens"]
    ),
    "budget_cost": _positive("number", "The same in money, by the prices that are configured."),
    "canary": _positive("integer", "So many jobs are run before the rest.", maximum=handling.MOST["canary"]),
    "canary_percent": {
        "type": "number",
        "minimum": 0,
        "maximum": 100,
        "default": handling.DEFAULT_CANARY_PERCENT,
        "description": "When more of the canary fail, the batch is paused.",
    },
    "canary_then": {"type": "string", "enum": list(AfterCanary), "default": AfterCanary.CONTINUE.value},
    "not_before": {**MOMENT, "description": "None of its jobs is started sooner. Unix seconds, or RFC 3339."},
}


def given(wanted: HandlingRequest) -> dict[str, Any]:
    """Field of Handling → what the caller wrote of it, read. Raises ApiError."""
    values = {name: getattr(wanted, name) for name in handling.FIELDS}
    values = {name: value for name, value in values.items() if value is not UNSET}
    if "canary_then" in values:
        try:
            values["canary_then"] = AfterCanary(values["canary_then"])
        except ValueError:
            raise invalid(f"canary_then must be one of {', '.join(AfterCanary)}.", param="canary_then") from None
    if "not_before" in values:
        values["not_before"] = moment(values["not_before"], "not_before")
    return values


def handling_of(wanted: HandlingRequest) -> Handling:
    """What is asked for from the start. Raises ApiError."""
    found = Handling(**given(wanted))
    try:
        handling.check(found)
    except UsageError as error:
        raise field_refused(error) from None
    return found


def field_refused(error: UsageError) -> Exception:
    """What `handling` says of a value, as an answer: its first word is the field's name."""
    words = str(error)
    name = words.partition(" ")[0]
    return invalid(f"{words}.", param=name if name in _NAMES else None)


_NAMES: Final = frozenset({*handling.FIELDS, "priority", "completion_window", "deadline"})
