"""The laws of the limits, for several workers together, through whatever may befall Redis and them. Time is the test's
own, the server is real."""

import heapq
from random import Random

import pytest

from tests.conftest import eventually
from tests.worker.limits.conftest import dice_for, long_established
from tests.worker.limits.test_gcra import most_in_a_window
from worker.limits import Bucket, Limits, redis
from worker.limits.share import HEARTBEAT_SECONDS, LEASE_SECONDS


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(redis, "RETRY_SECONDS", 0.02)


async def all_back(workers) -> None:
    await eventually(lambda: not any(worker._away.is_set() for worker in workers))


async def run(workers, limits: Limits, clock, *, seconds: float, befalls=()) -> list[tuple[float, str]]:
    """Each worker asks, starts what it gets and waits as it is told. `befalls`: (second, coroutine function). Returns
    when calls started, and whose."""
    buckets, began = [Bucket("lane:1", limits)], clock()
    agenda = [(clock(), i, worker) for i, worker in enumerate(workers)]
    events = sorted(((began + second, what) for second, what in befalls), key=lambda event: event[0])
    started, late = [], dice_for(7)
    while agenda[0][0] < began + seconds:
        due, i, worker = heapq.heappop(agenda)
        while events and events[0][0] <= due:
            await events.pop(0)[1]()
        clock.now = max(due, clock.now)
        grant = await worker.acquire(buckets, want=500, tokens_each=1)
        started += [(clock(), i)] * grant.count
        if grant.count:
            await worker.settle(buckets, ended=grant.count, tokens=0)
        wait = 1.0 if grant.wait_seconds is None else grant.wait_seconds
        heapq.heappush(agenda, (clock() + wait + late.uniform(0.0, 0.004), i, worker))
    return started


async def test_four_workers_use_one_limit_to_the_full_and_evenly(redis_server, redis_limiters, clock):
    long_established(redis_server, clock())
    dice = dice_for(1)
    workers = [redis_limiters(f"w{i}", rng=dice.random) for i in range(4)]
    started = await run(workers, Limits(requests_per_minute=6_000), clock, seconds=75)
    times = [time for time, _ in started]
    assert most_in_a_window(times, 60.0) <= 6_000
    after_a_second = [time for time in times if time >= times[0] + 1]
    assert len(after_a_second) / (times[-1] - times[0] - 1) >= 0.98 * 100
    for i in range(4):
        assert sum(1 for _, who in started if who == i) == pytest.approx(len(started) / 4, rel=0.2)


@pytest.mark.parametrize("limit", [6, 60, 6_000])
async def test_the_law_of_the_window_holds_through_a_flush_and_without_redis(
    limit, redis_server, redis_limiters, clock
):
    long_established(redis_server, clock())
    dice = dice_for(limit)
    workers = [redis_limiters(f"w{i}", rng=dice.random) for i in range(4)]

    async def flush():
        redis_server.admin().flushall()

    async def stop():
        redis_server.stop()

    async def start():
        redis_server.start()
        await all_back(workers)

    befalls = [(20, flush), (20.3, flush), (30, stop), (38, start), (50, stop), (50.2, start), (70, flush)]
    started = await run(workers, Limits(requests_per_minute=limit), clock, seconds=90, befalls=befalls)
    times = [time for time, _ in started]
    assert most_in_a_window(times, 60.0) <= limit
    assert len(times) / 90 >= 0.9 * limit / 60 - 0.05


class Cluster:
    """Workers that start and end calls at random, and how many are really out."""

    def __init__(self, make, limits: Limits, clock, dice: Random) -> None:
        self._make, self._clock, self._dice = make, clock, dice
        self._buckets = [Bucket("lane:1", limits)]
        self.limit = limits.max_in_flight or 0
        self.out = {}
        self.peak = 0
        self._beat_at = clock()

    def hire(self) -> None:
        self.out[self._make(f"w{len(self.out)}", rng=self._dice.random)] = 0

    async def act(self) -> None:
        self._clock.advance(self._dice.uniform(0, 0.2))
        worker = self._dice.choice(list(self.out))
        if self._dice.random() < 0.6:
            grant = await worker.acquire(self._buckets, want=self._dice.choice([1, 5, 500]), tokens_each=1)
            self.out[worker] += grant.count
            self.peak = max(self.peak, sum(self.out.values()))
        elif ended := self._dice.randint(0, self.out[worker]):
            self.out[worker] -= ended
            await worker.settle(self._buckets, ended=ended, tokens=0)
        if self._clock() - self._beat_at > HEARTBEAT_SECONDS:
            self._beat_at = self._clock()
            for each in self.out:
                await each._with_redis(lambda each=each: each._report(each._standing.known()))

    async def kill(self) -> None:
        """Its calls end with it, its connection too; it says no farewell."""
        worker = self._dice.choice(list(self.out))
        del self.out[worker]
        worker._keeper.cancel()
        await worker._ledger.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_never_more_calls_at_once_than_the_limit_whatever_happens(seed, redis_server, redis_limiters, clock):
    long_established(redis_server, clock())
    dice = dice_for(seed)
    cluster = Cluster(redis_limiters, Limits(max_in_flight=dice.choice([3, 20, 100])), clock, dice)
    for _ in range(4):
        cluster.hire()
    for step in range(700):
        await cluster.act()
        assert cluster.peak <= cluster.limit
        if step % 100 == 50:
            befalls = dice.choice(["flush", "restart", "kill", "hire"])
            if befalls == "flush":
                redis_server.admin().flushall()
            elif befalls == "restart":
                redis_server.stop()
                back_at = clock() + LEASE_SECONDS * 0.8
                while clock() < back_at:
                    await cluster.act()
                redis_server.start()
                await all_back(cluster.out)
            elif befalls == "kill" and len(cluster.out) > 2:
                await cluster.kill()
            elif befalls == "hire":
                cluster.hire()
    assert cluster.peak >= 0.9 * cluster.limit
