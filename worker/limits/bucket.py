"""One limited thing (a lane, or an upstream as a whole): its rates, its calls in flight, its pause. Pure.

The Redis script does the same arithmetic (`acquire.lua`); both pass the same tests.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from promptmill.limits import Limits
from worker.limits import gcra
from worker.limits.gcra import Rate

#: What keeps a call from starting; the progress view shows it.
Binding = Literal["rpm", "tpm", "in_flight", "paused"]

#: Permits are handed out in blocks of about this much time: a claim for each would cost more than it brings.
BLOCK_SECONDS: Final = 0.05


@dataclass(slots=True)
class BucketState:
    """What a bucket remembers. Times are unix seconds."""

    requests_tat: float = 0.0
    tokens_tat: float = 0.0
    in_flight: int = 0
    paused_until: float = 0.0

    def is_idle(self, now: float) -> bool:
        """Is it like a bucket that was never used?"""
        return not self.in_flight and max(self.requests_tat, self.tokens_tat, self.paused_until) <= now


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a request for permits. `wait_seconds` and `binding` say why there were not more."""

    count: int
    wait_seconds: float | None = None  # None: until a call ends; nothing else will help
    binding: Binding | None = None


def offer(limits: Limits, state: BucketState, *, want: int, tokens_each: float, now: float) -> Grant:
    """How many of `want` calls may start now. Changes nothing."""
    if state.paused_until > now:
        return Grant(0, state.paused_until - now, "paused")
    count, wait, binding = want, None, None
    if limits.max_in_flight is not None and count > (free := max(0, limits.max_in_flight - state.in_flight)):
        count, wait, binding = free, None, "in_flight"
    if limits.requests_per_minute is not None:
        rate = Rate(limits.requests_per_minute)
        if count > (fit := gcra.available(rate, state.requests_tat, now)):
            tat = gcra.spend(rate, state.requests_tat, now, fit) if fit else state.requests_tat
            block = BLOCK_SECONDS / rate.interval_seconds
            count, wait, binding = fit, gcra.wait_seconds(rate, tat, now, block), "rpm"
    if limits.tokens_per_minute is not None:
        rate = Rate(limits.tokens_per_minute)
        if count > (fit := gcra.available(rate, state.tokens_tat, now, max(1.0, tokens_each))):
            tat = gcra.spend(rate, state.tokens_tat, now, fit * tokens_each) if fit else state.tokens_tat
            count, wait, binding = fit, gcra.wait_seconds(rate, tat, now), "tpm"
    return Grant(count, wait, binding)  # type: ignore[arg-type]  # binding is one of the literals above


def take(limits: Limits, state: BucketState, *, count: int, tokens_each: float, now: float) -> None:
    """`count` calls start: what `offer` granted."""
    state.in_flight += count
    if limits.requests_per_minute is not None:
        state.requests_tat = gcra.spend(Rate(limits.requests_per_minute), state.requests_tat, now, count)
    if limits.tokens_per_minute is not None:
        state.tokens_tat = gcra.spend(Rate(limits.tokens_per_minute), state.tokens_tat, now, count * tokens_each)


def give_back(limits: Limits, state: BucketState, *, count: int, tokens: float, now: float) -> None:
    """`count` permits were not used after all: as if they had not been taken."""
    state.in_flight = max(0, state.in_flight - count)
    if limits.requests_per_minute is not None:
        state.requests_tat = gcra.spend(Rate(limits.requests_per_minute), state.requests_tat, now, -count)
    settle(limits, state, tokens=-tokens, now=now)


def settle(limits: Limits, state: BucketState, *, tokens: float, now: float) -> None:
    """Charge (or, negative, refund) the difference between the tokens reserved and those used."""
    if limits.tokens_per_minute is not None and tokens and math.isfinite(tokens):
        state.tokens_tat = gcra.spend(Rate(limits.tokens_per_minute), state.tokens_tat, now, tokens)
