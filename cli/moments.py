"""Moments as people type them."""

import re
import time
from datetime import datetime
from typing import Final

from promptmill.errors import UsageError

_IN: Final = re.compile(r"\+([0-9]{1,9})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: The year 9999: what is later is a mistake of units.
_LATEST: Final = 253_402_300_799.0


def moment(text: str, flag: str, *, now: float) -> float:
    """Unix seconds of 2026-12-01T02:00 (this machine's zone, where it names none), of +90m, or of unix seconds.

    Raises UsageError, naming the flag.

    >>> moment("+2h", "--not-before", now=1_000.0), moment("2026-12-01T02:00Z", "--not-before", now=0.0)
    (8200.0, 1796090400.0)
    """
    value: float
    if found := _IN.fullmatch(text):
        value = now + int(found[1]) * _UNITS[found[2]]
    else:
        try:
            value = float(text)
        except ValueError:
            try:
                value = datetime.fromisoformat(text).timestamp()
            except (ValueError, OverflowError):
                raise UsageError(f"{flag} is {text[:40]!r}; write 2026-12-01T02:00, +90m or unix seconds") from None
    if not 0 <= value <= _LATEST:
        raise UsageError(f"{flag} must be unix seconds (not milliseconds) up to the year 9999")
    return value


def shown(at: float) -> str:
    """For people, in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
