"""Limits: how many calls may start now, on which terms, and if none, why and until when.

    gcra        the arithmetic of one rate, pure
    bucket      one limited thing (a lane, an upstream): rates, calls in flight and a pause, pure
    memory      buckets kept in this process, for the embedded mode
    redis       buckets kept in Redis (redis_ledger, scripts, *.lua), for any number of workers; without Redis, each has
                its share (standing, share)

A drain asks for a block of permits before it claims, so nothing is ever claimed that then has to wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from promptmill.limits import Limits
from worker.limits.bucket import Grant

__all__ = ["Bucket", "Grant", "Limiter", "Limits"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limited thing by name, with what it allows now."""

    key: str
    limits: Limits


class Limiter(Protocol):
    """Where permits come from."""

    async def acquire(self, buckets: Sequence[Bucket], *, want: int, tokens_each: float) -> Grant:
        """Permits for up to `want` calls of about `tokens_each` tokens, from all buckets at once.

        A refusal (count 0) changes nothing.
        """

    async def give_back(self, buckets: Sequence[Bucket], *, count: int, tokens: float) -> None:
        """Permits that found no job, with the tokens they were taken for."""

    async def settle(self, buckets: Sequence[Bucket], *, ended: int, tokens: float) -> None:
        """`ended` calls are over; `tokens` is what calls used beyond (or, negative, below) what was reserved."""

    async def pause(self, key: str, *, until: float) -> None:
        """No call before `until`; a shorter pause does not end a longer one."""

    def forget(self, key: str) -> bool:
        """This bucket is not used here any more. False while something is still counted in it: ask again later."""
