"""The wire between a worker and the limits in Redis: two scripts, what is asked of them and what they answer.

The ledger is what Redis remembers of the limits: who works, what each bucket has spent, who has how many calls in
flight. Keys, all under `promptmill:`:

    limits            hash: the ledger's id, made anew when it comes back empty, and when that was
    limits:workers    sorted set: worker -> end of its lease
    limits:calls      hash: worker -> number of its newest call
    BUCKET            hash, such as `lane:3`: requests_tat, tokens_tat, paused_until (unix seconds by Redis' own clock)
    BUCKET:in_flight  hash: worker -> its calls in flight
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from worker.limits import Bucket
from worker.limits.bucket import Binding
from worker.limits.scripts import script

PREFIX: Final = "promptmill:"


class LedgerAwayError(Exception):
    """Redis did not do what it was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One bucket of an acquire."""

    bucket: Bucket
    in_flight: int
    #: How many the worker may have in flight while the ledger is fresh.
    fresh_in_flight: int


@dataclass(frozen=True, slots=True)
class Change:
    """One bucket of a report: what the worker has in flight, and what is to be charged (or, negative, refunded)."""

    bucket: Bucket
    in_flight: int
    requests: float = 0.0
    tokens: float = 0.0
    pause_seconds: float = 0.0
    #: How far the rates were ahead when the worker last heard, for a ledger that has forgotten.
    requests_ahead: float = 0.0
    tokens_ahead: float = 0.0


class Ahead(NamedTuple):
    """How many seconds a bucket's times lie ahead of Redis' clock (negative: behind)."""

    requests: float
    tokens: float
    paused: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What Redis says: who is there, what it grants, and how things stand."""

    workers: int
    rank: int
    fresh_seconds: float
    count: int
    wait_seconds: float | None
    binding: Binding | None
    #: A wait longer by this much loses nothing.
    grace_seconds: float
    buckets: tuple[Ahead, ...]


class Ledger:
    """One worker's connection to the ledger. Connects at the first call; not for calls at the same time."""

    def __init__(self, url: str, worker: str, *, timeout_seconds: float, now: Callable[[], float] | None) -> None:
        self._url = url
        self._worker = worker
        self._timeout_seconds = timeout_seconds
        self._now = now  # tests only: otherwise Redis' own clock
        self._numbers = itertools.count(1)
        self._id = ""
        self._redis: Redis | None = None

    async def ping(self) -> None:
        """Is it there? Raises LedgerAwayError."""
        redis = self._client()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await redis.ping()
        except Exception as error:  # see _lost
            raise await self._lost(error) from error

    async def acquire(self, asks: Sequence[Ask], *, want: int, tokens_each: float) -> Answer | None:
        """Permits. None: this ledger does not know the worker; it has to join first."""
        words: list[Any] = [want, tokens_each]
        for ask in asks:
            words += [*_rates(ask.bucket), _word(ask.bucket.limits.max_in_flight), ask.in_flight, ask.fresh_in_flight]
        return await self._call("acquire", [ask.bucket for ask in asks], words)

    async def report(self, changes: Sequence[Change], mode: Literal["", "join", "leave"] = "") -> Answer | None:
        """Tell how things stand. None as above, but never to one who joins."""
        words: list[Any] = [mode]
        for change in changes:
            words += [
                *_rates(change.bucket), change.in_flight, change.requests, change.tokens, change.pause_seconds,
                change.requests_ahead, change.tokens_ahead,
            ]  # fmt: skip
        return await self._call("report", [change.bucket for change in changes], words)

    async def aclose(self) -> None:
        """Disconnect."""
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.aclose()

    def _client(self) -> Redis:
        if self._redis is None:
            self._redis = Redis.from_url(
                self._url,
                protocol=2,  # what the scripts answer needs no more, and it connects with fewer words
                single_connection_client=True,
                # Not socket_timeout: redis-py keeps it with wait_for, which on Python 3.11 may swallow a cancellation.
                socket_timeout=None,
                socket_connect_timeout=self._timeout_seconds,
                retry=Retry(NoBackoff(), 0),  # an acquire that is sent again takes twice
            )
        return self._redis

    async def _call(self, name: str, buckets: Sequence[Bucket], words: Sequence[Any]) -> Answer | None:
        keys = [f"{PREFIX}limits", f"{PREFIX}limits:workers", f"{PREFIX}limits:calls"]
        for bucket in buckets:
            keys += [f"{PREFIX}{bucket.key}", f"{PREFIX}{bucket.key}:in_flight"]
        now = "" if self._now is None else self._now()
        words = [now, self._worker, next(self._numbers), self._id, *words]
        redis, chosen = self._client(), script(name)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                try:
                    reply = await redis.evalsha(chosen.sha, len(keys), *keys, *words)
                except NoScriptError:
                    reply = await redis.eval(chosen.text, len(keys), *keys, *words)
        except Exception as error:  # see _lost
            raise await self._lost(error) from error
        return self._read(reply)

    async def _lost(self, error: Exception) -> LedgerAwayError:
        """Drivers and event loops have many words for a lost connection (RedisError, OSError, EOFError; uvloop's
        RuntimeError), and all mean the same: begin anew."""
        with suppress(Exception):
            await self.aclose()
        return LedgerAwayError(str(error) or f"no answer within {self._timeout_seconds:g} s")

    def _read(self, reply: Sequence[bytes]) -> Answer | None:
        if reply[0] == b"join":
            return None
        if reply[0] != b"ok":
            raise LedgerAwayError(f"another process counts as {self._worker}")
        _, ledger_id, workers, rank, fresh, count, wait, binding, grace, *aheads = reply
        self._id = ledger_id.decode()
        triples = zip(*[iter(map(float, aheads))] * 3, strict=True)
        return Answer(
            int(workers),
            int(rank),
            float(fresh),
            int(count),
            float(wait) if wait else None,
            binding.decode() or None,  # type: ignore[arg-type]  # one of the literals: acquire.lua has the same four
            float(grace),
            tuple(Ahead(*triple) for triple in triples),
        )


def _word(limit: float | None) -> float | str:
    return "" if limit is None else limit


def _rates(bucket: Bucket) -> tuple[float | str, float | str]:
    return _word(bucket.limits.requests_per_minute), _word(bucket.limits.tokens_per_minute)
