"""What somebody says holds for all workers: a pause within a second, caps together, a cancelled batch's calls."""

import time

from promptmill.handling import Handling
from promptmill.store import batches, control, pauses
from promptmill.store.pauses import EVERYTHING, What
from tests.cluster.cluster import Cluster, until

#: What an order may take to act, from its commit on.
AT_ONCE_SECONDS = 1.0


def last_change(count, seconds: float) -> float:
    """When a number changed for the last time, in seconds from now on; looked at for so long."""
    began, before, changed = time.monotonic(), count(), 0.0
    while (after := time.monotonic() - began) < seconds:
        if (now := count()) != before:
            before, changed = now, after
        time.sleep(0.01)
    return changed


def batch_id(cluster: Cluster, public_id: str) -> int:
    return cluster.do(batches.find(cluster.db, public_id)).id


def test_a_pause_holds_for_every_worker_within_a_second(cluster):
    server = cluster.simulator(latency_seconds=(0.05, 0.1))
    cluster.limits(in_flight=60)
    cluster.workers("w1", "w2", "w3")
    cluster.submit(3_000)
    until(lambda: server.stats.requests >= 300)
    cluster.do(pauses.pause(cluster.db, What.ALL, EVERYTHING, now=time.time()))
    last = last_change(lambda: server.stats.requests, AT_ONCE_SECONDS + 0.7)
    print(f"last call {last:.2f} s after the pause")
    assert last < AT_ONCE_SECONDS
    sent = server.stats.requests
    assert cluster.done() == sent < 3_000  # what was out is kept
    cluster.do(pauses.resume(cluster.db, What.ALL, EVERYTHING, now=time.time()))
    until(lambda: server.stats.requests >= sent + 300)
    cluster.check_all_still_run()


def test_calls_of_a_cancelled_batch_are_aborted_by_every_worker(cluster):
    server = cluster.simulator(latency_seconds=(60.0, 60.0))
    cluster.workers("w1", "w2")
    batch = cluster.submit(10)
    until(lambda: server.stats.in_flight == 10)
    asked = time.monotonic()
    cluster.do(control.cancel(cluster.db, batch_id=batch_id(cluster, batch), abort=True, now=time.time()))
    until(lambda: server.stats.in_flight == 0, seconds=5.0)
    assert time.monotonic() - asked < AT_ONCE_SECONDS
    cluster.until_finished()
    assert cluster.rows("SELECT state, count(*) FROM results GROUP BY 1") == [("cancelled", 10)]
    assert cluster.ledger() == {"batch_cancelled": 10}


def test_caps_hold_for_two_workers_together(cluster):
    server = cluster.simulator(latency_seconds=(0.1, 0.2))
    cluster.workers("w1", "w2")
    cluster.submit(40, handling=Handling(max_in_flight=6))
    cluster.until_finished()
    assert 4 <= server.stats.peak_in_flight <= 6
    cluster.rows("UPDATE promptmill_tenants SET requests_per_minute = 1200")  # of both batches together
    began = time.monotonic()
    for first in (100, 200):
        cluster.submit(30, first=first)
    cluster.until_finished()
    seconds = time.monotonic() - began
    print(f"60 calls at 20 a second took {seconds:.1f} s")
    assert 2.8 < seconds < 8.0
    cluster.check_each_job_has_one_result(100)
