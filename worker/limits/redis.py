"""Buckets kept in Redis, for any number of workers; and what a worker does while Redis is away, or
has just come back empty.

    with Redis      every permit comes from the ledger (redis_ledger.py), shared by all
    without it      a share of the limits last known (share.py), counted in this process as memory.py does
    it comes back   the worker joins again: it tells what it has in flight, what it used by itself, and which pauses it
                    knows; so nothing that matters is lost when Redis is emptied

A caller never sees an error of Redis. It waits for one time-out when Redis goes away, then never until it is back.
"""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from worker.limits import Bucket, Limits
from worker.limits.bucket import BLOCK_SECONDS, Grant
from worker.limits.memory import MemoryLimiter
from worker.limits.redis_ledger import Answer, Ledger, LedgerAwayError
from worker.limits.share import HEARTBEAT_SECONDS, LEASE_SECONDS, SHARE_PART
from worker.limits.standing import Standing

log = logging.getLogger("promptmill.worker")

#: While Redis is away it is looked for this often.
RETRY_SECONDS: Final = 0.5

_T = TypeVar("_T")


class RedisLimiter:
    """Takes permits from several buckets at once, all or nothing. One for each event loop; close it with `aclose()`."""

    def __init__(
        self,
        url: str,
        *,
        worker: str,
        assumed_workers: int = 2,
        timeout_seconds: float = 1.5,
        clock: Callable[[], float] | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """`worker` need not be unique. `assumed_workers` counts until Redis is reached for the first time; so long may
        one of its answers take. `clock` (tests) stands for this machine's clocks and for Redis' own."""
        self._steady = clock or time.monotonic
        self._wall = clock or time.time
        self._rng = rng
        name = f"{worker}/{secrets.token_hex(4)}"
        self._ledger = Ledger(url, name, timeout_seconds=timeout_seconds, now=clock)
        self._standing = Standing(workers=assumed_workers)
        self._alone = MemoryLimiter(self._steady, self._standing.states)
        self._turn = asyncio.Lock()  # a worker reports absolute numbers, so its calls must not overtake each other
        self._away = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def acquire(self, buckets: Sequence[Bucket], *, want: int, tokens_each: float) -> Grant:
        """Permits for up to `want` calls of about `tokens_each` tokens. A refusal changes nothing."""
        self._standing.meet(buckets, self._steady())
        grant = await self._with_redis(lambda: self._acquire(buckets, want, tokens_each))
        if grant is None:
            shares = self._standing.shares(buckets, self._steady())
            grant = await self._alone.acquire(shares, want=want, tokens_each=tokens_each)
        return grant

    async def give_back(self, buckets: Sequence[Bucket], *, count: int, tokens: float) -> None:
        """Permits that found no job."""
        await self._change(buckets, ended=count, requests=-count, tokens=-tokens)

    async def settle(self, buckets: Sequence[Bucket], *, ended: int, tokens: float) -> None:
        """`ended` calls are over; `tokens` is what they used beyond (or, negative, below) what was reserved."""
        await self._change(buckets, ended=ended, requests=0, tokens=tokens)

    async def pause(self, key: str, *, until: float) -> None:
        """No call before `until`; a shorter pause does not end a longer one."""
        seconds, now = until - self._wall(), self._steady()
        bucket = next((b for b in self._standing.known() if b.key == key), Bucket(key, Limits()))
        self._standing.meet([bucket], now)
        state = self._standing.states[key]
        state.paused_until = max(state.paused_until, now + seconds)
        await self._with_redis(lambda: self._report([bucket], pause_seconds=seconds))

    def forget(self, key: str) -> bool:
        """This bucket is not used here any more. False while something is still counted in it."""
        # While an answer is awaited, it may be about this bucket.
        return not self._turn.locked() and self._standing.forget(key, self._steady())

    async def aclose(self) -> None:
        """Leave: what this worker had is free at once."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._standing.has_joined and not self._away.is_set():
            async with self._turn:
                with suppress(LedgerAwayError):  # the lease ends by itself
                    known = self._standing.known()
                    await self._ledger.report([self._standing.change(bucket) for bucket in known], "leave")
        await self._ledger.aclose()

    # ---------------------------------------------------------------- with Redis

    async def _with_redis(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        """What Redis answers; None: it is away."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="promptmill-limits")
        # While Redis is away, only one who joins again has the lock: that is quick, and must not miss a permit.
        if self._away.is_set() and not self._turn.locked():
            return None
        async with self._turn:
            if self._away.is_set():
                return None
            try:
                return await ask()
            except LedgerAwayError as error:
                self._standing.lost(self._steady())
                self._away.set()
                log.warning(
                    "Redis is away (%s): this worker keeps to its share, %d %% of the limits for %d workers",
                    error, SHARE_PART * 100, self._standing.workers,
                )  # fmt: skip
                return None

    async def _acquire(self, buckets: Sequence[Bucket], want: int, tokens_each: float) -> Grant:
        sent = self._steady()
        answer = await self._asked(
            buckets,
            lambda: self._ledger.acquire(
                self._standing.asks(buckets, self._steady()), want=want, tokens_each=tokens_each
            ),
        )
        if self._steady() - sent > LEASE_SECONDS:
            return Grant(0, 0.0)  # this process stood still: others may have these permits by now
        for bucket in buckets:
            self._standing.states[bucket.key].in_flight += answer.count
        return Grant(answer.count, self._spread(answer), answer.binding)

    def _spread(self, answer: Answer) -> float | None:
        """Workers that wait for the same thing should not all come at once, nor always in the same order."""
        if answer.wait_seconds is None:
            return None
        return answer.wait_seconds + self._rng() * min((answer.workers - 1) * BLOCK_SECONDS, answer.grace_seconds)

    async def _report(
        self, buckets: Sequence[Bucket], *, requests: float = 0.0, tokens: float = 0.0, pause_seconds: float = 0.0
    ) -> Answer:
        return await self._asked(
            buckets,
            lambda: self._ledger.report(
                [
                    self._standing.change(bucket, requests=requests, tokens=tokens, pause_seconds=pause_seconds)
                    for bucket in buckets
                ]
            ),
        )

    async def _change(self, buckets: Sequence[Bucket], *, ended: int, requests: float, tokens: float) -> None:
        self._standing.meet(buckets, self._steady())
        for bucket in buckets:
            state = self._standing.states[bucket.key]
            state.in_flight = max(0, state.in_flight - ended)
        if not math.isfinite(tokens):
            tokens = 0.0
        if await self._with_redis(lambda: self._report(buckets, requests=requests, tokens=tokens)) is None:
            self._standing.charge(buckets, requests=requests, tokens=tokens, now=self._steady())

    async def _asked(self, buckets: Sequence[Bucket], ask: Callable[[], Awaitable[Answer | None]]) -> Answer:
        answer = await ask()
        if answer is None:
            await self._join()
            answer = await ask()
        if answer is None:
            raise LedgerAwayError("it is emptied again and again")
        self._standing.heard(buckets, answer, self._steady())
        return answer

    # ---------------------------------------------------------------- staying there, and coming back

    async def _join(self) -> None:
        buckets = self._standing.known()
        answer = await self._ledger.report(self._standing.joining(self._steady()), "join")
        if answer is None:
            raise LedgerAwayError("it does not let this worker join")
        forgotten = self._standing.joined(self._steady())
        self._standing.heard(buckets, answer, self._steady())
        if forgotten:
            log.warning(
                "Redis was emptied: for %.1f s no worker has more calls at once than before", answer.fresh_seconds
            )

    async def _keep(self) -> None:
        """Say that this worker is alive; while Redis is away, look for it."""
        while True:
            if self._away.is_set():
                await asyncio.sleep(RETRY_SECONDS)
                await self._rejoin()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):  # 3.11's wait_for may swallow a cancellation
                    await self._away.wait()
            if not self._away.is_set():
                await self._with_redis(lambda: self._report(self._standing.known()))

    async def _rejoin(self) -> None:
        try:
            await self._ledger.ping()  # may take its time: the worker goes on with its share
            async with self._turn:
                await self._join()
                self._away.clear()
        except LedgerAwayError:
            return
        log.info("Redis is back: the limits are shared again, by %d workers", self._standing.workers)
