"""What a worker may do on its own when it cannot know what the others do: its share of the limits, and less than that
at first. Pure.

Redis is away, or has lost what it knew. The rates are split between the workers that were alive, times 0.8 for what was
not known. Calls in flight cannot be split at once: one worker may have all of them, and takes its time to finish. So
for as long as a lease nobody starts more than it had itself, which is safe whatever the others had; then its share is
its due. The weakness: with calls longer than a lease, a lane may be over its limit until the longest of them ends.

A rate passes from Redis to the worker and back as what has been used and has not worn off, in cells (requests or
tokens), so that the law of gcra.py holds through both changes: the worker starts with its burst used up, and what it
has used by itself is added to what Redis knows.
"""

from typing import Final

from promptmill.limits import Limits
from worker.limits.gcra import Rate

#: The part of the limits that is used while nobody can count.
SHARE_PART: Final = 0.8
#: A worker says that it is alive this often.
HEARTBEAT_SECONDS: Final = 5.0
#: One that has been silent for so long is taken for dead, and its slots for free.
LEASE_SECONDS: Final = 12.5
#: When Redis comes back empty, it takes a heartbeat and a little until every worker has told what it has in flight.
FRESH_SECONDS: Final = HEARTBEAT_SECONDS + 1.5
#: A worker that has just started, and finds Redis empty, lets those speak first that may have been there before.
LISTEN_SECONDS: Final = 1.0


def most_in_flight(max_in_flight: int, workers: int, held: int | None) -> int:
    """How many calls one of `workers` may have in flight; `held` is how many it had when it lost sight of the others,
    None when that does not matter."""
    share = max(1, int(max_in_flight * SHARE_PART / workers))
    return share if held is None else min(share, held)


def share_of(limits: Limits, workers: int, held: int | None) -> Limits:
    """The limits for one of `workers` while it is on its own."""
    requests, tokens, calls = limits.requests_per_minute, limits.tokens_per_minute, limits.max_in_flight
    return Limits(
        None if requests is None else requests * SHARE_PART / workers,
        None if tokens is None else tokens * SHARE_PART / workers,
        None if calls is None else most_in_flight(calls, workers, held),
    )


def opening_seconds(shared: Rate, own: Rate, ahead_seconds: float, workers: int, rank: int) -> float:
    """How far ahead of the clock a worker's own rate starts, when the shared one is known to be `ahead_seconds` ahead.

    The first calls of workers that lose Redis together come one after the other, in the order of their ranks.
    """
    burst_used = own.burst - 1 + (rank + 1) / workers
    used = max(0.0, ahead_seconds) / shared.interval_seconds
    return max(burst_used, used / workers) * own.interval_seconds


def used_cells(own: Rate, ahead_seconds: float) -> float:
    """What a worker has used by itself and has not worn off, to be charged to the shared rate."""
    return max(0.0, ahead_seconds) / own.interval_seconds
