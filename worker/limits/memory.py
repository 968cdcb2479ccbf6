"""Buckets kept in this process. Right for the embedded mode, where one process does all calls; for several processes
the limits live in Redis."""

from collections.abc import Callable, Sequence

from worker.limits import Bucket, bucket
from worker.limits.bucket import BucketState, Grant


class MemoryLimiter:
    """Takes permits from several buckets at once, all or nothing."""

    def __init__(self, clock: Callable[[], float], states: dict[str, BucketState] | None = None) -> None:
        """`states` may be somebody else's, who counts in them too."""
        self._clock = clock
        self._states = {} if states is None else states

    def _state(self, key: str) -> BucketState:
        return self._states.setdefault(key, BucketState())

    async def acquire(self, buckets: Sequence[Bucket], *, want: int, tokens_each: float) -> Grant:
        """Permits for up to `want` calls of about `tokens_each` tokens. A refusal changes nothing."""
        now = self._clock()
        grants = [
            bucket.offer(b.limits, self._state(b.key), want=want, tokens_each=tokens_each, now=now) for b in buckets
        ]
        tightest = min(grants, key=lambda grant: (grant.count, -(grant.wait_seconds or 0.0)), default=Grant(want))
        for b in buckets:
            if tightest.count:
                bucket.take(b.limits, self._state(b.key), count=tightest.count, tokens_each=tokens_each, now=now)
        return tightest

    async def give_back(self, buckets: Sequence[Bucket], *, count: int, tokens: float) -> None:
        """Permits that found no job."""
        now = self._clock()
        for b in buckets:
            bucket.give_back(b.limits, self._state(b.key), count=count, tokens=tokens, now=now)

    async def settle(self, buckets: Sequence[Bucket], *, ended: int, tokens: float) -> None:
        """`ended` calls are over; `tokens` is what they used beyond (or, negative, below) what was reserved."""
        now = self._clock()
        for b in buckets:
            state = self._state(b.key)
            state.in_flight = max(0, state.in_flight - ended)
            bucket.settle(b.limits, state, tokens=tokens, now=now)

    async def pause(self, key: str, *, until: float) -> None:
        """No call before `until`; a shorter pause does not end a longer one."""
        state = self._state(key)
        state.paused_until = max(state.paused_until, until)

    def forget(self, key: str) -> bool:
        """This bucket is not used here any more. False while something is still counted in it."""
        if not self._state(key).is_idle(self._clock()):
            return False
        del self._states[key]
        return True
