"""Priorities as callers write them: an integer, or the name of a class."""

from typing import Any, Final

from api.errors import invalid
from promptmill.priority import CLASSES, INTERACTIVE, LOWEST

#: What the OpenAPI document says of it.
PRIORITY: Final[dict[str, Any]] = {
    "description": "A number, or a class; higher ones go first.",
    "anyOf": [{"type": "integer", "minimum": LOWEST, "maximum": INTERACTIVE - 1}, {"enum": list(CLASSES)}],
}


def priority(value: int | str | None) -> int:
    """The number. Raises ApiError. The interactive class is the gateway's: whoever waits goes first."""
    if value is None:
        return 0
    if isinstance(value, str):
        if value not in CLASSES:
            raise invalid(f"priority must be an integer or one of {', '.join(CLASSES)}.", param="priority")
        value = CLASSES[value]
    if value == INTERACTIVE:
        return INTERACTIVE - 1
    if not LOWEST <= value < INTERACTIVE:
        raise invalid(f"priority must lie between {LOWEST} and {INTERACTIVE - 1}.", param="priority")
    return value
