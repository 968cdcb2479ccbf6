"""What a lane did lately, and which part of it tells how fast it will go on: pure.

What it did is counted in buckets of time. Not all of them tell something: before there was work nothing could end, the
first answers come a call's length after it began, and the bucket of this moment is not full. What it did before it fell
idle tells of its pace only where its places or its rate were used: a lane that is asked for an answer now and then is
not slow. A pause is cut out, as if what came before and what came after had followed each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from promptmill.limits import Limits

#: A worker says so often what it did, and as much may be missing of what has just ended.
LAG_SECONDS: Final = 2.0
#: So long without an end, and longer than three calls, and the lane was idle, or stood still.
GAP_SECONDS: Final = 60.0
_CALLS_IN_A_GAP: Final = 3
#: With fewer full buckets the one of this moment is counted as far as it goes.
_FEW: Final = 3
#: After a pause so many full buckets tell enough, and those before it are not looked at.
_ENOUGH: Final = 6
#: A call is short that takes less than this part of the time that was seen.
_SHORT: Final = 0.25
#: Sooner nothing can be told.
_LEAST_SECONDS: Final = 1.0
#: A lane was busy that used so much of what its limits allow.
_BUSY: Final = 0.5


class Bucket(Protocol):
    """What a lane did in a bucket of time."""

    @property
    def bucket(self) -> int: ...  # unix seconds // bucket_seconds
    @property
    def finished(self) -> int: ...  # jobs
    @property
    def calls(self) -> int: ...  # that were answered
    @property
    def seconds(self) -> float: ...  # that these took together


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a lane is: what LaneWork is made of."""

    finished: tuple[int, ...] = ()
    bucket_seconds: float = 1.0
    call_seconds: float | None = None
    is_rough: bool = False  # it was some time ago
    is_silent: bool = False  # it has work, and nothing has ended for long


@dataclass(frozen=True, slots=True)
class _Moved:
    """A bucket, as if it had been later."""

    bucket: int
    finished: int
    calls: int
    seconds: float


def seen(
    buckets: Sequence[Bucket],
    *,
    bucket_seconds: float,
    busy_since: float | None,
    working_since: float = 0.0,
    done: int = 0,
    pause: tuple[float, float] | None = None,
    limits: Limits,
    now: float,
) -> Pace:
    """The pace that these buckets of a lane tell of, the oldest first; empty ones may be left out.

    `busy_since`: from then on it had more work than it could do; None: it has none now. `working_since`: before, no
    worker that is there now was. `done`: so many jobs are known to have finished since `busy_since`, at least.
    `pause`: from then until then nothing was started that kept it busy; until `now`, where that goes on.
    """
    if pause is not None and busy_since is not None and pause[1] > busy_since:
        return _without(pause, buckets, bucket_seconds, busy_since, working_since, done, limits, now)
    call_seconds = _call_seconds(buckets)
    gap = max(GAP_SECONDS, _CALLS_IN_A_GAP * (call_seconds or 0.0))
    bursts = _bursts([each for each in buckets if each.finished], gap / bucket_seconds)
    if not bursts:
        is_silent = busy_since is not None and now - max(busy_since, working_since) > gap
        return Pace(call_seconds=call_seconds, is_silent=is_silent)
    burst = bursts[-1]
    call_seconds = _call_seconds([each for each in buckets if each.bucket >= burst[0].bucket])
    if busy_since is None:
        return _earlier(burst, bucket_seconds, limits, call_seconds)
    begun = math.floor(busy_since / bucket_seconds)
    if now - max((burst[-1].bucket + 1) * bucket_seconds, busy_since, working_since) > gap:
        return Pace(call_seconds=call_seconds, is_silent=True)
    before = [each for each in burst if each.bucket < begun]
    if (
        before and before[-1].bucket >= begun - 1 and _was_busy(before, bucket_seconds, limits)
    ):  # with work that is done
        return _until_now(burst, burst[0].bucket * bucket_seconds, 0, bucket_seconds, now, call_seconds)
    current = burst[len(before) :]
    if not current:
        return _earlier(burst, bucket_seconds, limits, call_seconds)
    first = current[0].bucket * bucket_seconds
    if first - busy_since > gap:
        done = 0  # most of it long ago
    if first <= working_since < first + bucket_seconds:
        busy_since = max(busy_since, working_since)
    return _until_now(current, busy_since, done, bucket_seconds, now, call_seconds)


def _without(
    pause: tuple[float, float],
    buckets: Sequence[Bucket],
    bucket_seconds: float,
    busy_since: float,
    working_since: float,
    done: int,
    limits: Limits,
    now: float,
) -> Pace:
    """The same, the pause cut out: with it the bucket in which it began, and all up to the first full one in which
    answers could come again. What is told so is rough after a long pause."""
    since, until = pause
    call_seconds = _call_seconds(buckets)
    cut = math.floor(since / bucket_seconds)
    again = max(cut, math.ceil((until + (call_seconds or 0.0)) / bucket_seconds))
    moved = (again - cut) * bucket_seconds
    after = [each for each in buckets if each.bucket >= again]
    before = [
        _Moved(each.bucket + again - cut, each.finished, each.calls, each.seconds)
        for each in buckets
        if each.bucket < cut and busy_since < since
    ]
    if (now - LAG_SECONDS) / bucket_seconds - again >= _ENOUGH or not any(each.finished for each in before):
        told = seen(
            after, bucket_seconds=bucket_seconds, busy_since=max(busy_since, again * bucket_seconds),
            working_since=working_since, limits=limits, now=now,
        )  # fmt: skip
        return told if told.call_seconds is not None else replace(told, call_seconds=call_seconds)
    gone = sum(each.finished for each in buckets if cut <= each.bucket < again)
    told = seen(
        [*before, *after], bucket_seconds=bucket_seconds, busy_since=busy_since + moved,
        working_since=working_since + moved if working_since < since else working_since,
        done=done - gone if now >= again * bucket_seconds else 0, limits=limits, now=max(now, again * bucket_seconds),
    )  # fmt: skip
    return replace(told, is_rough=told.is_rough or until - since > GAP_SECONDS)


def _call_seconds(buckets: Sequence[Bucket]) -> float | None:
    calls = sum(each.calls for each in buckets)
    return sum(each.seconds for each in buckets) / calls if calls else None


def _bursts(buckets: Sequence[Bucket], gap: float) -> list[list[Bucket]]:
    """Those between which there was never a gap of so many buckets."""
    bursts: list[list[Bucket]] = []
    for each in buckets:
        if bursts and each.bucket - bursts[-1][-1].bucket <= gap:
            bursts[-1].append(each)
        else:
            bursts.append([each])
    return bursts


def _until_now(
    burst: Sequence[Bucket],
    busy_since: float,
    done: int,
    bucket_seconds: float,
    now: float,
    call_seconds: float | None,
) -> Pace:
    """Of a burst that goes on: the silence since its last end counts too."""
    first = burst[0].bucket
    full_until = math.floor((now - LAG_SECONDS) / bucket_seconds)  # the first one that is not
    # Answers of long calls come late: the calls before the first one belong to the burst.
    lead = min(math.floor((call_seconds or 0.0) / bucket_seconds), first - math.floor(busy_since / bucket_seconds))
    inside = first - lead if lead else first + 1  # work began somewhere in the first bucket
    if full_until - inside >= _FEW:
        return Pace(_counts(burst, inside, full_until), bucket_seconds, call_seconds)
    seconds = now - max(busy_since, (first - lead) * bucket_seconds)
    if (call_seconds or 0.0) < seconds * _SHORT:
        seconds -= call_seconds or 0.0  # in which nothing could have ended yet
    if seconds < _LEAST_SECONDS:
        return Pace(call_seconds=call_seconds)
    return Pace((max(done, sum(each.finished for each in burst)),), seconds, call_seconds)


def _earlier(burst: Sequence[Bucket], bucket_seconds: float, limits: Limits, call_seconds: float | None) -> Pace:
    """Of a burst that is over."""
    if not _was_busy(burst, bucket_seconds, limits):
        return Pace(call_seconds=call_seconds)
    counts = _counts(burst, burst[0].bucket + 1, burst[-1].bucket)
    return Pace(counts, bucket_seconds, call_seconds, is_rough=True)


def _counts(burst: Sequence[Bucket], first: int, end: int) -> tuple[int, ...]:
    counts = {each.bucket: each.finished for each in burst}
    return tuple(counts.get(bucket, 0) for bucket in range(first, end))


def _was_busy(burst: Sequence[Bucket], bucket_seconds: float, limits: Limits) -> bool:
    """Did the lane use its places, or its rate, in the burst's inner buckets? (The others it may not have filled.)"""
    inside = burst[1:-1]
    if len(inside) < _FEW:
        return False
    seconds = (burst[-1].bucket - burst[0].bucket - 1) * bucket_seconds
    in_flight = sum(each.seconds for each in inside) / seconds
    per_minute = sum(each.calls for each in inside) / seconds * 60
    return (limits.max_in_flight is not None and in_flight >= _BUSY * limits.max_in_flight) or (
        limits.requests_per_minute is not None and per_minute >= _BUSY * limits.requests_per_minute
    )
