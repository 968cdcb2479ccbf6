"""Tickets come and go, and jobs get done: from `submit` to the last result, whatever becomes of the messages."""

import time
from collections.abc import Callable

from tests.cluster.cluster import Cluster, until

SLOTS = 4


def busy(cluster: Cluster) -> int:
    """Slots in use, or about to be."""
    return cluster.drains() + cluster.tickets()


def until_finished(cluster: Cluster, within_slots: Callable[[], bool]) -> float:
    """Wait for the batches' end; returns how long it took."""
    began = time.monotonic()

    def finished() -> bool:
        assert within_slots()
        return cluster.one("SELECT count(*) FROM batches WHERE finished_at IS NULL") == 0

    until(finished, 30)
    return time.monotonic() - began


def test_from_submit_to_the_last_result(cluster):
    server = cluster.simulator(latency_seconds=(0.2, 0.4))
    cluster.worker("w1", slots=2, app="tests.cluster.impatient")
    cluster.worker("w2", slots=2, pool="threads", app="tests.cluster.impatient")
    cluster.maint()
    cluster.beat()
    until(lambda: cluster.slots() == SLOTS)

    # By hand, as its user does it.
    ended = cluster.cli("submit", cluster.file(300))
    assert ended.code == 0
    assert "300 jobs enqueued" in ended.err
    batch = ended.out.strip()
    watched = cluster.cli("watch", batch, "--json")
    assert watched.code == 0
    assert '"succeeded": 300' in watched.out
    cluster.check_each_job_has_one_result(300)

    # A drain that has nothing to do leaves its slot.
    until(lambda: busy(cluster) == 0)

    # Every message is lost, and nobody who runs is told: the clock finds the work.
    cluster.redis.admin().flushall()
    cluster.submit(300, first=300, tell=False)
    took = until_finished(cluster, lambda: busy(cluster) <= SLOTS)
    print(f"found and done by the clock after {took:.1f} s")
    cluster.check_each_job_has_one_result(600)

    # With more to do than a moment, all slots get their drain; and tickets of many submits do not pile up.
    server.reset()
    for n in range(10):
        cluster.submit(200, first=600 + 200 * n)
        assert cluster.tickets() <= SLOTS
    until(lambda: cluster.drains() == SLOTS)
    until_finished(cluster, lambda: cluster.drains() <= SLOTS >= cluster.tickets())
    cluster.check_each_job_has_one_result(2_600)
    assert server.stats.duplicates == 0
    until(lambda: busy(cluster) == 0)
    cluster.check_all_still_run()
