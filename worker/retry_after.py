"""Reads how long an upstream asks to be left alone: one header, and the half dozen ways in which it is written."""

import math
import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

#: Nobody is waited for longer than this at a stretch; who is still busy then will say so again.
MAX_SECONDS = 3600.0

#: Where rate-limit headers say what is left and when there is more: OpenAI's per kind, Together's, everybody's.
_BUDGETS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-tokenlimit-remaining", "x-ratelimit-reset"),
)
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)"
_DURATION = re.compile(f"(?:{_PART})+")
#: A "reset" as large as this is a moment since 1970, in seconds; as large as the second one, in milliseconds.
_EPOCH, _EPOCH_MS = 1e9, 1e12


def retry_after_seconds(headers: Mapping[str, str], status: int, now: float) -> float | None:
    """The wait that the upstream asks for, from 0 to an hour; None if it does not. `now` is the wall clock.

    `headers` finds names in lower case, as httpx.Headers does.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = headers.get("retry-after", "").strip()
    if value:
        seconds = _number(value)
        if seconds is None:
            seconds = _until(value, now)
        if seconds is not None:
            return _bounded(seconds)
    if status == 429:  # noqa: PLR2004 - too many requests
        waits = list(_exhausted(headers, now))
        if waits:
            return _bounded(max(waits))
    return None


def _exhausted(headers: Mapping[str, str], now: float) -> Iterator[float]:
    """When each budget that is used up is filled again."""
    for remaining, reset in _BUDGETS:
        left = _number(headers.get(remaining, ""))
        if left is not None and left < 1:
            seconds = _duration(headers.get(reset, "").strip(), now)
            if seconds is not None:
                yield seconds


def _duration(value: str, now: float) -> float | None:
    """Seconds ("1.5"), Go's durations ("6m0s", "20ms"), or a moment ("1750000000")."""
    number = _number(value)
    if number is None:
        if not _DURATION.fullmatch(value):
            return None
        return sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(_PART, value))
    if number >= _EPOCH_MS:
        return number / 1000 - now
    return number - now if number >= _EPOCH else number


def _until(value: str, now: float) -> float | None:
    """An HTTP date."""
    try:
        return parsedate_to_datetime(value).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_SECONDS)
