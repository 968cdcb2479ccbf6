"""The Lua scripts and the Python functions write down one arithmetic twice: the same questions get the same answers."""

import pytest

from tests.worker.limits.conftest import dice_for, long_established
from worker.limits import Bucket, Limits
from worker.limits.memory import MemoryLimiter

LIMITS = [
    Limits(6_000, 1_000_000, 100),
    Limits(60, 20_000, None),
    Limits(7.5, None, 3),
    Limits(None, 90_000, 500),
    Limits(),
]


@pytest.mark.parametrize("seed", range(8))
async def test_a_lone_worker_is_answered_alike_by_both(seed, redis_server, redis_limiters, clock):
    long_established(redis_server, clock())
    dice = dice_for(seed)
    memory, redis = MemoryLimiter(clock), redis_limiters()
    held = [0, 0]
    for _ in range(60):
        clock.advance(dice.choice([0.0, 0.001, 0.05, 0.4, 5.0]))
        # Limits may change from call to call.
        buckets = [Bucket(f"lane:{i}", dice.choice(LIMITS)) for i in range(2)][: dice.choice([1, 2, 2])]
        want, each = dice.choice([1, 8, 500]), dice.choice([0.0, 1.0, 450.5, 60_000.0])
        grants = [await limiter.acquire(buckets, want=want, tokens_each=each) for limiter in (memory, redis)]
        assert grants[1].count == grants[0].count
        assert grants[1].binding == grants[0].binding
        assert grants[1].wait_seconds == pytest.approx(grants[0].wait_seconds, abs=1e-6)
        for i in range(len(buckets)):
            held[i] += grants[0].count
        ended = dice.randint(0, min(held[: len(buckets)]))
        unused = min(ended, dice.choice([0, 0, 3]))
        error = dice.choice([0.0, -400.0, 2_000.0, float("nan")])
        pause = clock() + dice.choice([-1.0, 0.2]) if dice.random() < 0.1 else None
        for limiter in (memory, redis):
            await limiter.give_back(buckets, count=unused, tokens=unused * each)
            await limiter.settle(buckets, ended=ended - unused, tokens=error)
            if pause is not None:
                await limiter.pause("lane:0", until=pause)
        for i in range(len(buckets)):
            held[i] -= ended
