"""The generic cell rate algorithm: a rate limit as one number, the theoretical arrival time (TAT) of the next cell.

Source: ITU-T I.371, Annex A ("virtual scheduling algorithm"). A cell of cost c may pass at time t when
TAT - t <= tolerance; then TAT = max(TAT, t) + c x interval.

The burst is small and taken out of the limit, so that the law is simple: **in any window of 60 s no more than the
limit starts**, however the window lies and however long the lane was idle before. With interval T and a burst of b
cells, a window W sees fewer than W/T + b cells; T is chosen so that this is limit + 1. A burst of a whole minute, or
even of a second on top of the full rate, would be answered with 429s by an upstream that counts in windows.
"""

from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 60.0

#: Unix seconds as floats are exact to about 0.2 µs.
ROUNDING_SECONDS: Final = 1e-6

#: The burst, as a part of the minute's limit: 0.3 s worth. Enough to catch up after a pause of the event loop.
BURST_PART: Final = 0.005


@dataclass(frozen=True, slots=True)
class Rate:
    """`limit` cells per minute as GCRA's two constants."""

    limit: float

    @property
    def burst(self) -> float:
        """Cells that may start at the same moment after an idle time; at least one."""
        return max(1.0, self.limit * BURST_PART)

    @property
    def interval_seconds(self) -> float:
        """Time that one cell takes."""
        return WINDOW_SECONDS / (self.limit - (self.burst - 1))  # in this order a tiny limit stays what it is

    @property
    def tolerance_seconds(self) -> float:
        """How far TAT may lie ahead of the clock when a cell passes."""
        return (self.burst - 1) * self.interval_seconds


def available(rate: Rate, tat: float, now: float, cost: float = 1.0) -> int:
    """How many cells of `cost` may pass now.

    A cell that costs more than the burst passes when nothing else is owed, and leaves a debt behind: a prompt of 1M
    tokens under a limit of 1M a minute has to be possible, and then takes its minute.
    """
    interval = rate.interval_seconds
    slack = now + rate.tolerance_seconds - max(tat, now)
    if slack < -ROUNDING_SECONDS:
        return 0
    return 1 + int((slack + ROUNDING_SECONDS) / (interval * cost))


def spend(rate: Rate, tat: float, now: float, cost: float) -> float:
    """The TAT after `cost` cells; negative costs are refunds, and never bring back more than the burst."""
    if cost < 0:
        return max(tat + cost * rate.interval_seconds, now - rate.tolerance_seconds)
    return max(tat, now) + cost * rate.interval_seconds


def wait_seconds(rate: Rate, tat: float, now: float, ahead: float = 0.0) -> float:
    """How long until the next cell may pass, or until `ahead` further ones may pass together with it."""
    ahead = min(ahead, rate.burst - 1)
    return max(0.0, tat + ahead * rate.interval_seconds - rate.tolerance_seconds - now)
