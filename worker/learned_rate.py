"""How many calls a second a lane takes that nobody has told us the limit of: learned from what it refuses. Pure.

Until something is refused there is no limit. A wave of calls that are refused tells the limit: what of the wave was
taken, over the time in which it was sent. From then on calls start at a little less than that, evenly, and faster with
every second in which nothing is refused: a little near the rate that was refused last, else much. So an upstream that
answers 429 to two hundred calls does so once, and not after every pause.

Only "you are too fast" counts; an upstream that is overloaded says nothing about our rate.
"""

import math
from dataclasses import dataclass
from typing import Final

#: Of what was taken, so much is asked for next.
CAREFUL: Final = 0.9
#: How much faster it goes after each second without a refusal, and how much near the rate that was refused last.
GROWTH_A_SECOND: Final = 0.5
CAREFUL_GROWTH_A_SECOND: Final = 0.01
#: A wave that was sent in less is taken to be what this much time allows: limits are counted by the second at least.
LEAST_SECONDS: Final = 1.0
#: As long as nothing was refused, what was sent longer ago tells nothing about now.
WAVE_SECONDS: Final = 10.0
#: So long after a burst its traces are gone.
SETTLED_SECONDS: Final = 5.0
#: What is taken so slowly is left to the pauses between calls; and of a few calls that were refused nothing is learned.
LEAST_RATE: Final = 2.0
LEAST_WAVE: Final = 8
#: Calls that may start at the same moment, in seconds' worth: permits come in blocks.
BURST_SECONDS: Final = 0.1


@dataclass(slots=True)
class LearnedRate:
    """One lane's. Times are unix seconds."""

    #: Calls a second; None: nothing was refused yet.
    rate: float | None = None
    _ceiling: float = math.inf  # the rate that was refused last; the first wave was no rate, but a burst
    _began: float = -math.inf  # the first start of the present wave
    _sent_at: float = -math.inf  # and the last one
    _sent: int = 0
    _refused: int = 0
    _burst_at: float = -math.inf
    _is_burst: bool = False  # the wave was sent before any limit was known
    _grown_at: float = -math.inf
    _next_at: float = -math.inf  # when the next call is due at an even pace

    def room(self, now: float) -> int | None:
        """Calls that may start now; None: any number."""
        if self.rate is None:
            return None
        slack = BURST_SECONDS - max(0.0, self._next_at - now)  # no credit for having been idle
        return 1 + math.floor(slack * self.rate) if slack >= 0 else 0

    def wait_seconds(self, now: float) -> float:
        """How long until one may start."""
        return max(0.0, self._next_at - BURST_SECONDS - now)

    def started(self, count: int, now: float) -> None:
        """So many calls start."""
        if self._refused and now > self._sent_at:  # those that were out together are refused together
            self._refused = self._sent = 0
            self._is_burst = False
        if not self._sent or (self.rate is None and now - self._began >= WAVE_SECONDS):
            self._began, self._sent = now, 0
        self._sent += count
        self._sent_at = now
        self._grow(now)
        if self.rate is not None:
            self._next_at = max(self._next_at, now) + count / self.rate

    def refused(self, started_at: float, now: float) -> None:
        """A call that started then was refused, because we are too fast."""
        if started_at < self._began:
            return  # it is of an earlier wave, which has told what it had to tell
        self._refused += 1
        self._grown_at = now
        # What was claimed before the rate was known is no debt.
        self._next_at = min(max(self._next_at, now), now + LEAST_SECONDS)
        if self.rate is None and self._sent < LEAST_WAVE:
            return
        if self.rate is None or self._is_burst:
            self._is_burst, self._burst_at = True, now
            taken = self._sent - self._refused
            self.rate = max(LEAST_RATE, CAREFUL * taken / max(LEAST_SECONDS, self._sent_at - self._began))
        elif self._refused == 1:
            # Soon after the burst it may be what that left behind which is refused, at whatever rate.
            self._ceiling = self.rate if now - self._burst_at >= SETTLED_SECONDS else math.inf
            self.rate = max(LEAST_RATE, CAREFUL * self.rate)

    def _grow(self, now: float) -> None:
        seconds = min(now - self._grown_at, 1.0)
        if self.rate is None or seconds < 1.0:
            return
        self._grown_at = now
        near = CAREFUL * self._ceiling <= self.rate <= self._ceiling / CAREFUL
        self.rate *= 1.0 + (CAREFUL_GROWTH_A_SECOND if near else GROWTH_A_SECOND)
