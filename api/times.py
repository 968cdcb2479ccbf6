"""Moments as callers write them: unix seconds, or RFC 3339."""

import math
from datetime import datetime
from typing import Any, Final

from api.errors import invalid

#: The year 9999: what is later is a mistake of units.
LATEST: Final = 253_402_300_799.0

#: What the OpenAPI document says of one.
MOMENT: Final[dict[str, Any]] = {
    "description": "Unix seconds, or RFC 3339 with its zone.",
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": LATEST},
        {"type": "string", "format": "date-time"},
        {"type": "null"},
    ],
}


def moment(value: float | str | None, name: str) -> float | None:
    """Unix seconds. Raises ApiError, naming the field."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            raise invalid(
                f"{name} is {value[:40]!r}; write unix seconds or 2026-01-31T08:00:00Z.", param=name
            ) from None
        if parsed.tzinfo is None:
            raise invalid(f"{name} has no time zone; write 2026-01-31T08:00:00Z or …+01:00.", param=name)
        value = parsed.timestamp()
    if not math.isfinite(value) or not 0 <= value <= LATEST:
        raise invalid(f"{name} must be unix seconds (not milliseconds) up to the year 9999.", param=name)
    return float(value)
