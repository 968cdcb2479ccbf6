"""How much may pass: two rules about the same thing, apart from who asks and from the clock.

`TokenBucket` refills steadily and lets a second's worth through at once: over any span of T seconds no more than
capacity + rate * T. `SlidingWindow` remembers what passed: in any 60 seconds never more than the limit, however it
is spread. It is exact and costs memory for each call of the last minute, and it allows a burst of a whole minute's
worth, which no provider does for long.

Neither changes anything when asked whether something may pass; only `take` does, so that several can be asked
before one is charged.
"""

from collections import deque
from typing import Protocol

_WINDOW_SECONDS = 60.0
#: Sums of floats are off by less than this, and nobody waits for it.
_SLACK = 1e-9


class Limit(Protocol):
    """What is asked of either rule. Times are seconds of one monotonic clock."""

    per_minute: float

    def seconds_until(self, cost: float, now: float) -> float:
        """How long until so much may pass; 0 when it may now."""

    def take(self, cost: float, now: float) -> None:
        """It passes."""

    def remaining(self, now: float) -> float:
        """How much may pass at once."""

    def seconds_until_full(self, now: float) -> float:
        """How long until as much may pass at once as ever."""


class TokenBucket:
    """Steady. A cost above the capacity passes when the bucket is full, and leaves it in debt: the rate holds."""

    def __init__(self, per_minute: float, burst_seconds: float, now: float) -> None:
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self.capacity = max(1.0, self._per_second * burst_seconds)
        self._level = self.capacity
        self._updated = now

    def seconds_until(self, cost: float, now: float) -> float:
        lacking = min(cost, self.capacity) - self._level_at(now)
        return 0.0 if lacking <= _SLACK else lacking / self._per_second

    def take(self, cost: float, now: float) -> None:
        self._level = self._level_at(now) - cost
        self._updated = max(now, self._updated)

    def remaining(self, now: float) -> float:
        return max(0.0, self._level_at(now))

    def seconds_until_full(self, now: float) -> float:
        return (self.capacity - self._level_at(now)) / self._per_second

    def _level_at(self, now: float) -> float:
        refilled = self._level + max(0.0, now - self._updated) * self._per_second
        return min(self.capacity, refilled)


class SlidingWindow:
    """Exact. A cost above the limit passes when nothing else did for a minute: it has to pass some time."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._passed: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def seconds_until(self, cost: float, now: float) -> float:
        self._forget(now)
        excess = self._sum + min(cost, self.per_minute) - self.per_minute
        if excess <= _SLACK:
            return 0.0
        for passed_at, passed in self._passed:
            excess -= passed
            if excess <= _SLACK:
                return max(0.0, passed_at + _WINDOW_SECONDS - now)
        return _WINDOW_SECONDS

    def take(self, cost: float, now: float) -> None:
        self._forget(now)
        self._passed.append((now, cost))
        self._sum += cost

    def remaining(self, now: float) -> float:
        self._forget(now)
        return max(0.0, self.per_minute - self._sum)

    def seconds_until_full(self, now: float) -> float:
        self._forget(now)
        return self._passed[-1][0] + _WINDOW_SECONDS - now if self._passed else 0.0

    def _forget(self, now: float) -> None:
        while self._passed and self._passed[0][0] <= now - _WINDOW_SECONDS:
            self._sum -= self._passed.popleft()[1]
        if not self._passed:
            self._sum = 0.0
