"""Decides what becomes of a failed attempt, and of its lane: a table of rules, with the clock and the dice passed in.

Waiting is not failing: a rate limit, an overloaded platform and a shutdown give the attempt back. Everything else that
may mend by itself is tried again with full jitter, a random wait below an exponentially growing bound, which spreads
the retries of many jobs better than any fixed schedule (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015). A wrong key or model is no matter of trying again: the lane halts, and its jobs wait for a person.
"""

from collections.abc import Callable
from dataclasses import dataclass

from promptmill.job import State
from promptmill.outcome import LANE_FAULTS, WAITS, Failure, Reason

#: The bounds of a lane's pauses, where the upstream does not say how long. Short at first: most limits are per second.
PAUSE_BASE_SECONDS = 0.5
PAUSE_CAP_SECONDS = 60.0
#: A single 503 may be a bad moment of one machine of many; so many in a row are the platform.
OVERLOADED_IN_A_ROW = 8
#: Doubling more often than this changes nothing below any cap, and floats end at 2**1023.
MAX_DOUBLINGS = 60


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently."""

    #: Attempts that count, the first one included.
    max_attempts: int = 6
    #: The bound of the first wait; it doubles with each attempt.
    base_seconds: float = 1.0
    #: No bound grows beyond this; only an upstream's Retry-After does.
    cap_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Finish:
    """No further attempt: the job ends in this state."""

    state: State = State.FAILED


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt, not before that moment. `counts` is False when this attempt is given back."""

    not_before: float
    counts: bool


Decision = Finish | Retry


def decide(
    failure: Failure,
    attempts: int,
    now: float,
    policy: RetryPolicy,
    random: Callable[[], float],
    *,
    lane_halted: bool = False,
) -> Decision:
    """What to do with the job. `attempts` are those that counted so far, this one included; `random` is in [0, 1)."""
    reason = failure.reason
    if reason is Reason.STOPPED or (lane_halted and reason in LANE_FAULTS):
        return Retry(not_before=now, counts=False)
    asked = failure.retry_after_seconds
    if reason in WAITS:
        # The lane pauses as well (below); this only keeps its jobs from coming back all at once.
        return Retry(not_before=now + (random() * policy.base_seconds if asked is None else asked), counts=False)
    if not failure.retriable or attempts >= policy.max_attempts:
        return Finish()
    wait = random() * _bound(policy.base_seconds, policy.cap_seconds, attempts - 1)
    return Retry(not_before=now + max(wait, asked or 0.0), counts=True)


def lane_pause_seconds(failure: Failure, consecutive_waits: int, random: Callable[[], float]) -> float:
    """How long the whole lane should send nothing. `consecutive_waits` counts this one, since the last success."""
    if failure.reason not in {Reason.RATE_LIMITED, Reason.OVERLOADED}:
        return 0.0
    if failure.retry_after_seconds is not None:
        return failure.retry_after_seconds
    doublings = consecutive_waits - 1
    if failure.reason is Reason.OVERLOADED:
        doublings = consecutive_waits - OVERLOADED_IN_A_ROW
        if doublings < 0:
            return 0.0
    return random() * _bound(PAUSE_BASE_SECONDS, PAUSE_CAP_SECONDS, doublings)


def _bound(base: float, cap: float, doublings: int) -> float:
    exponent: int = min(max(doublings, 0), MAX_DOUBLINGS)
    return min(cap, base * float(1 << exponent))
