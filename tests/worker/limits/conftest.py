"""Limiters of both kinds, and a real Redis for the second."""

import random
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.redis_server import RedisServer
from worker.limits.memory import MemoryLimiter
from worker.limits.redis import RedisLimiter


@pytest.fixture(scope="session")
def _redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_process: RedisServer) -> RedisServer:
    """A real redis-server: running, empty."""
    if not _redis_process.is_running:
        _redis_process.start()
    _redis_process.go_on()
    _redis_process.admin().flushall()
    return _redis_process


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
