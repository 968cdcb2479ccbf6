"""Limiters of both kinds."""

import random
from collections.abc import AsyncIterator, Callable

import pytest

from tests.redis_server import RedisServer
from worker.limits.memory import MemoryLimiter
from worker.limits.redis import RedisLimiter


def dice_for(seed: int) -> random.Random:
    """Chance that is the same in every run."""
    return random.Random(seed)  # noqa: S311  # nothing secret


def long_established(server: RedisServer, now: float) -> None:
    """The ledger was not emptied lately, so its silence means that nothing is known against anybody."""
    server.admin().hset("promptmill:limits", mapping={"id": "test", "began": now - 3600})


@pytest.fixture
async def redis_limiters(redis_server, clock) -> AsyncIterator[Callable[..., RedisLimiter]]:
    """Makes workers' limiters, on the test's clock unless told otherwise; closes them in the end."""
    made = []

    def make(name: str = "worker", **options) -> RedisLimiter:
        made.append(RedisLimiter(redis_server.url, worker=name, **{"clock": clock, "rng": lambda: 0.0, **options}))
        return made[-1]

    yield make
    for limiter in made:
        await limiter.aclose()


@pytest.fixture(params=["memory", "redis"])
def limiter(request: pytest.FixtureRequest, clock):
    """Each storage of limits once: what holds for one holds for the other."""
    if request.param == "memory":
        return MemoryLimiter(clock)
    long_established(request.getfixturevalue("redis_server"), clock())
    return request.getfixturevalue("redis_limiters")()
