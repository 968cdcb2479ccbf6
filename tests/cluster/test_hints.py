"""What a worker says through Redis is heard by processes that wait for it."""

import asyncio

from promptmill.hints import JobKey, Listener
from promptmill.redis_hints import RedisHints
from tests.cluster.cluster import Cluster, until
from tests.conftest import eventually

JOBS = 20


def test_who_listens_hears_of_every_finished_job(cluster):
    cluster.simulator()
    cluster.worker("w1", slots=1, pool="threads")
    until(lambda: cluster.slots() == 1)
    said = asyncio.run(heard(cluster))
    assert sorted(position for _, position in said) == list(range(JOBS))
    cluster.check_each_job_has_one_result(JOBS)


async def heard(cluster: Cluster) -> set[JobKey]:
    """What is said of the jobs of one batch, submitted when the listener was there."""
    said: set[JobKey] = set()
    listens = asyncio.Event()

    def finished(jobs) -> None:
        said.update(jobs)
        listens.set()  # the first call comes with the connection, and names no job

    hints = RedisHints(cluster.redis.url)
    async with hints.listening(Listener(finished=finished)):
        await listens.wait()
        await asyncio.to_thread(cluster.submit, JOBS)
        await eventually(lambda: len(said) == JOBS)
    await hints.aclose()
    return said
