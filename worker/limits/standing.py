"""What one worker knows of the limits: how far each bucket is used, by its own clock; how many the others are; and
whether it is on its own. From this it says what it asks of Redis, and what it does without. No I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.limits import Bucket, Limits, gcra
from worker.limits.bucket import BucketState, settle
from worker.limits.gcra import Rate
from worker.limits.redis_ledger import Answer, Ask, Change
from worker.limits.share import (
    FRESH_SECONDS,
    LEASE_SECONDS,
    LISTEN_SECONDS,
    most_in_flight,
    opening_seconds,
    share_of,
    used_cells,
)


@dataclass(slots=True)
class Standing:
    """All times are by the clock that the caller passes."""

    #: Workers alive when last heard; before that, what the settings assume.
    workers: int
    #: How many of them come before this one: it waits for its turn by it.
    rank: int = 0
    #: A bucket's rates are the shared ones as last heard; on its own, the worker's share of them.
    states: dict[str, BucketState] = field(default_factory=dict)
    #: Since when Redis is away.
    alone_since: float | None = None
    has_joined: bool = False
    _limits: dict[str, Limits] = field(default_factory=dict)
    #: Calls in flight when this worker lost sight of the others; None: it never saw them, or long ago.
    _held: dict[str, int] | None = None
    _fresh_until: float = 0.0

    # ---------------------------------------------------------------- with Redis

    def meet(self, buckets: Sequence[Bucket], now: float) -> None:
        """These buckets are in use, with these limits."""
        for bucket in buckets:
            self._limits[bucket.key] = bucket.limits
            if bucket.key not in self.states:
                self.states[bucket.key] = BucketState()
                if self.alone_since is not None:
                    self._open(bucket.key, now)

    def forget(self, key: str, now: float) -> bool:
        """This bucket is not used here any more; False while something is still counted in it."""
        if not self.states.get(key, BucketState()).is_idle(now):
            return False
        self.states.pop(key, None)
        self._limits.pop(key, None)
        return True

    def known(self) -> list[Bucket]:
        """All buckets met so far."""
        return [Bucket(key, limits) for key, limits in self._limits.items()]

    def asks(self, buckets: Sequence[Bucket], now: float) -> list[Ask]:
        """How to ask for permits from them."""
        return [Ask(b, self.states[b.key].in_flight, self._fresh_in_flight(b, now)) for b in buckets]

    def _fresh_in_flight(self, bucket: Bucket, now: float) -> int:
        if bucket.limits.max_in_flight is None:
            return 0  # not looked at
        if self._held is None and self._fresh_until - now > FRESH_SECONDS - LISTEN_SECONDS:
            return 0
        return most_in_flight(bucket.limits.max_in_flight, self.workers, self._held_in(bucket.key, now))

    def change(
        self, bucket: Bucket, *, requests: float = 0.0, tokens: float = 0.0, pause_seconds: float = 0.0
    ) -> Change:
        """What to report of a bucket."""
        return Change(bucket, self.states[bucket.key].in_flight, requests, tokens, pause_seconds)

    def heard(self, buckets: Sequence[Bucket], answer: Answer, now: float) -> None:
        """Redis has answered."""
        self.rank = answer.rank
        # A ledger that is fresh has not heard of everybody yet.
        self.workers = max(self.workers, answer.workers) if answer.fresh_seconds else answer.workers
        self._fresh_until = now + answer.fresh_seconds
        for bucket, ahead in zip(buckets, answer.buckets, strict=True):
            state = self.states[bucket.key]
            state.requests_tat = now + ahead.requests
            state.tokens_tat = now + ahead.tokens
            state.paused_until = max(state.paused_until, now + ahead.paused)

    # ---------------------------------------------------------------- losing it, and finding it again

    def lost(self, now: float) -> None:
        """Redis is away: from now on this worker counts by itself."""
        self.alone_since = now
        self._hold()
        for key in self.states:
            self._open(key, now)

    def _hold(self) -> None:
        if self.has_joined:
            self._held = {key: state.in_flight for key, state in self.states.items()}

    def _open(self, key: str, now: float) -> None:
        shared, state = self._limits[key], self.states[key]
        own = share_of(shared, self.workers, None)
        state.requests_tat = now + self._opening(
            shared.requests_per_minute, own.requests_per_minute, state.requests_tat - now
        )
        state.tokens_tat = now + self._opening(shared.tokens_per_minute, own.tokens_per_minute, state.tokens_tat - now)

    def _opening(self, shared: float | None, own: float | None, ahead_seconds: float) -> float:
        if shared is None or own is None:
            return 0.0
        return opening_seconds(Rate(shared), Rate(own), ahead_seconds, self.workers, self.rank)

    def shares(self, buckets: Sequence[Bucket], now: float) -> list[Bucket]:
        """What these buckets allow while the worker is on its own."""
        return [self._share(bucket, now) for bucket in buckets]

    def _share(self, bucket: Bucket, now: float) -> Bucket:
        return Bucket(bucket.key, share_of(bucket.limits, self.workers, self._held_in(bucket.key, now)))

    def charge(self, buckets: Sequence[Bucket], *, requests: float, tokens: float, now: float) -> None:
        """What Redis could not be told."""
        for bucket in self.shares(buckets, now):
            state, rate = self.states[bucket.key], bucket.limits.requests_per_minute
            if rate is not None and requests:
                state.requests_tat = gcra.spend(Rate(rate), state.requests_tat, now, requests)
            settle(bucket.limits, state, tokens=tokens, now=now)

    def _held_in(self, key: str, now: float) -> int | None:
        if self._held is None or (self.alone_since is not None and now - self.alone_since > LEASE_SECONDS):
            return None
        return self._held.get(key, 0)

    def joining(self, now: float) -> list[Change]:
        """What to tell a ledger that does not know this worker, or that it has not heard for a while."""
        return [self._joining(bucket, now) for bucket in self.known()]

    def _joining(self, bucket: Bucket, now: float) -> Change:
        state = self.states[bucket.key]
        requests, tokens = state.requests_tat - now, state.tokens_tat - now
        pause = max(0.0, state.paused_until - now)
        if self.alone_since is None:
            return Change(bucket, state.in_flight, 0.0, 0.0, pause, max(0.0, requests), max(0.0, tokens))
        own = self._share(bucket, now).limits
        return Change(
            bucket,
            state.in_flight,
            0.0 if own.requests_per_minute is None else used_cells(Rate(own.requests_per_minute), requests),
            0.0 if own.tokens_per_minute is None else used_cells(Rate(own.tokens_per_minute), tokens),
            pause,
        )

    def joined(self, now: float) -> bool:
        """The ledger knows this worker now. Had it forgotten, as far as this worker can tell?"""
        forgotten = self.has_joined and self.alone_since is None
        if forgotten:
            self._hold()
        elif self.alone_since is not None and now - self.alone_since > LEASE_SECONDS:
            self._held = None
        self.alone_since = None
        self.has_joined = True
        return forgotten
