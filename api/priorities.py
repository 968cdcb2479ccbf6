"""Priorities as callers write them: an integer, or the name of a class."""

from typing import Any, Final

from api.errors import invalid
from promptmill.errors import UsageError
from promptmill.handling import priority_number
from promptmill.priority import CLASSES, HIGHEST, LOWEST

#: What the OpenAPI document says of it.
PRIORITY: Final[dict[str, Any]] = {
    "description": "A number, or a class; higher ones go first.",
    "anyOf": [{"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}, {"enum": list(CLASSES)}],
}


def priority(value: int | str | None) -> int:
    """The number. Raises ApiError."""
    try:
        return 0 if value is None else priority_number(value)
    except UsageError as error:
        raise invalid(f"{error}.", param="priority") from None
