"""Which call goes wrong, and how: a rehearsal is only worth something when its failures can be played again.

The choice is a function of (seed, arrival number, percentages), so the same run meets the same faults whatever the
timing. A script, when one is set, is consumed first: `["429", "429", "ok"]` fails two calls and lets the third
through. How each fault looks to a client is `misbehaviour.py`.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping

from promptmill.errors import UsageError

#: The faults that are not a status code, and what the client sees.
NAMED_FAULTS: Mapping[str, str] = {
    "reset": "the connection is reset and nothing was answered",
    "close": "the connection is closed and nothing was answered",
    "truncated": "the body ends before its announced length, or the stream before its end",
    "html": "200 with an HTML page",
    "notjson": "200 with JSON that breaks off",
    "empty": "200 with no body",
    "nochoices": "200 with JSON that lacks the answer",
    "hang": "no answer, ever (--hang-seconds)",
    "slow": "the right answer after ten times the latency",
    "drip": "the right answer, a byte at a time",
}

#: The word of a script for "nothing goes wrong with this one".
OK = "ok"

_STATUSES = range(400, 600)
_WHOLE_PERCENT = 100.0


class BadFlagError(UsageError, ValueError):
    """A setting of the simulator cannot be as given; the message says what would do."""


def is_status(name: str) -> bool:
    return name.isascii() and name.isdigit() and int(name) in _STATUSES


def checked_name(name: object) -> str:
    """A fault's name as it is used inside, whether it came as 503 or as "503"."""
    text = str(name).strip().lower() if isinstance(name, str | int) and not isinstance(name, bool) else ""
    if is_status(text) or text in NAMED_FAULTS:
        return text
    known = ", ".join(NAMED_FAULTS)
    raise BadFlagError(f"unknown fault {name!r}: use an HTTP status from 400 to 599, or one of {known}")


def checked_faults(faults: Mapping[str, float]) -> dict[str, float]:
    """Percentages that make sense together, under checked names."""
    checked: dict[str, float] = {}
    for name, percent in faults.items():
        number = isinstance(percent, int | float) and not isinstance(percent, bool)
        if not number or not 0 <= percent <= _WHOLE_PERCENT:
            raise BadFlagError(f"fault {name}: the percentage must be a number from 0 to 100, got {percent!r}")
        checked[checked_name(name)] = float(percent)
    if sum(checked.values()) > _WHOLE_PERCENT + 1e-9:
        raise BadFlagError(f"the faults add up to {sum(checked.values()):g} %, which is more than all calls")
    return checked


def checked_script(steps: Iterable[object]) -> list[str]:
    return [OK if step == OK else checked_name(step) for step in steps]


class FaultPlan:
    """The percentages in force, the script before them, and the count of arrivals they are drawn by."""

    def __init__(self, seed: int, percentages: Mapping[str, float]) -> None:
        self._seed = seed
        self._arrivals = 0
        self._script: deque[str] = deque()
        self.percentages = checked_faults(percentages)

    def set_percentages(self, percentages: Mapping[str, float]) -> None:
        self.percentages = checked_faults(percentages)

    def set_script(self, steps: Iterable[object]) -> None:
        self._script = deque(checked_script(steps))

    def script_left(self) -> int:
        return len(self._script)

    def restart(self) -> None:
        """Back to arrival 0 with no script; the percentages stay."""
        self._arrivals = 0
        self._script.clear()

    def next_fault(self) -> str | None:
        """The fault of the call arriving now, or None when it is to be served."""
        arrival = self._arrivals
        self._arrivals += 1
        if self._script:
            step = self._script.popleft()
            return None if step == OK else step
        if not self.percentages:
            return None
        draw = _percent_of(self._seed, arrival)
        for name, percent in self.percentages.items():
            draw -= percent
            if draw < 0:
                return name
        return None


def _percent_of(seed: int, arrival: int) -> float:
    """Uniform in [0, 100), independent from one arrival to the next."""
    digest = hashlib.blake2b(b"%d/%d" % (seed, arrival), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56) * _WHOLE_PERCENT
