"""How a batch is handled beside others, as its producer asks for it: its weight and caps, a budget, a canary, a start.

All doors (command line, HTTP, schedules) read what was asked for with the functions below, so all mean the same.
"""

import math
import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from promptmill.errors import UsageError
from promptmill.priority import CLASSES, HIGHEST, LOWEST

MAX_WINDOW_SECONDS: Final = 365 * 86_400
#: As long as it takes.
NO_WINDOW: Final = "background"
DEFAULT_CANARY_PERCENT: Final = 10.0
MOST_WEIGHT: Final = 1_000.0
#: Beyond these it is a mistake, and no column could hold it.
MOST: Final = {"max_in_flight": 1_000_000, "budget_tokens": 10**15, "canary": 10**9}

_WINDOW: Final = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class AfterCanary(StrEnum):
    """What comes after a canary that did well."""

    #: The rest of the batch.
    CONTINUE = "continue"
    #: The batch is paused until somebody resumes it.
    ASK = "ask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """What may be asked for. None: nothing of the kind. The fields are columns of `batches`."""

    weight: float = 1.0  # among the batches of its tenant and priority
    max_in_flight: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    #: When so many tokens (prompts and answers together) or so much money is spent, the batch is paused.
    budget_tokens: int | None = None
    budget_cost: float | None = None
    #: So many jobs are run first; when more than so many per cent of them fail, the batch is paused.
    canary: int | None = None
    canary_percent: float = DEFAULT_CANARY_PERCENT
    canary_then: AfterCanary = AfterCanary.CONTINUE
    not_before: float | None = None  # none of its jobs is started sooner; unix seconds


_ABOVE_ZERO: Final = ("max_in_flight", "budget_tokens", "budget_cost", "canary")
#: What is less does harm by its arithmetic, and nobody good: a rate of one in a week, a share of nothing.
LEAST: Final = {"weight": 0.001, "requests_per_minute": 0.0001, "tokens_per_minute": 0.0001}
FIELDS: Final = tuple(each.name for each in fields(Handling))


def check(handling: Handling) -> None:
    """Raise UsageError, beginning with the field's name, for what makes no sense."""
    for name in _ABOVE_ZERO:
        value = getattr(handling, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name} must be above 0, not {value:g}")
    for name, least in LEAST.items():
        value = getattr(handling, name)
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"{name} must be {least:g} at least, not {value:g}")
    for name, most in MOST.items():
        value = getattr(handling, name)
        if value is not None and value > most:
            raise UsageError(f"{name} must be {most:,} at most, not {value:,}")
    if handling.weight > MOST_WEIGHT:
        raise UsageError(f"weight must be {MOST_WEIGHT:g} at most, not {handling.weight:g}")
    if not 0 <= handling.canary_percent <= 100:  # noqa: PLR2004 - per cent
        raise UsageError(f"canary_percent must lie between 0 and 100, not {handling.canary_percent:g}")


def window_seconds(text: str) -> float | None:
    """Seconds of a completion window like 90m, 24h or 7d; None for `background`. Raises UsageError."""
    if text == NO_WINDOW:
        return None
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_WINDOW_SECONDS:
        raise UsageError(
            f"completion_window must be like 90m, 24h or 7d, 365 days at most, or {NO_WINDOW}, not {text[:40]!r}"
        )
    return float(seconds)


def deadline(window: str, *, made_at: float, not_before: float | None) -> float | None:
    """When a completion window closes, in unix seconds: it opens when the batch is made, or when it may start. None for
    `background`. Raises UsageError."""
    seconds = window_seconds(window)
    return None if seconds is None else max(made_at, not_before or 0.0) + seconds


def priority_number(value: int | str) -> int:
    """The priority's number, where a class's name will do. Raises UsageError."""
    try:
        number = CLASSES[value] if isinstance(value, str) and value in CLASSES else int(value)
    except ValueError:
        raise UsageError(
            f"priority must be an integer or one of {', '.join(CLASSES)}, not {str(value)[:40]!r}"
        ) from None
    if not LOWEST <= number <= HIGHEST:
        raise UsageError(f"priority must lie between {LOWEST} and {HIGHEST}, not {number}")
    return number
