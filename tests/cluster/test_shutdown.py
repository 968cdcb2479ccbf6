"""However a worker is told to stop: nothing stays in its hands, no attempt is wasted, and it ends in time."""

import signal
import time

import pytest

from tests.cluster.cluster import STOP_MARGIN_SECONDS, until

GRACE_SECONDS = 2.0
SLOTS = 2
#: A lane that is not known to be good starts with so many calls for each drain.
HANDFUL = 8
WAYS = ("term", "int", "term-to-the-group", "control-shutdown")
JOBS = 100


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_nothing_stays_in_a_workers_hands(cluster, pool):
    cluster.settings(grace_seconds=GRACE_SECONDS)
    server = cluster.simulator(latency_seconds=(60, 60))
    cluster.submit(JOBS)
    workers = {way: cluster.worker(way, pool=pool, slots=SLOTS) for way in WAYS}
    until(lambda: cluster.slots() == SLOTS * len(WAYS))
    cluster.issue(SLOTS * len(WAYS))
    cluster.until_drains(SLOTS * len(WAYS))
    until(lambda: server.stats.in_flight >= SLOTS * len(WAYS) * HANDFUL)

    began = time.monotonic()
    workers["term"].tell(signal.SIGTERM)
    workers["int"].tell(signal.SIGINT)
    workers["term-to-the-group"].tell_all(signal.SIGTERM)
    cluster.celery("control", "-d", "control-shutdown@test", "shutdown")

    for way, worker in workers.items():
        # Celery's own choice: Ctrl-C is a failure.
        worker.ended(GRACE_SECONDS + STOP_MARGIN_SECONDS, code=1 if way == "int" else 0)
        print(f"{pool}, {way}: ended within {time.monotonic() - began:.1f} s")
    assert cluster.rows("SELECT state, attempts, worker_id, count(*) FROM jobs GROUP BY 1, 2, 3") == [
        ("ready", 0, None, JOBS)
    ]
    calls = server.stats.requests  # on a slow machine the lane may have been opened by then
    assert cluster.rows("SELECT outcome, counted, count(*) FROM attempts GROUP BY 1, 2") == [("stopped", False, calls)]
    assert cluster.one("SELECT count(DISTINCT worker_id) FROM attempts") == SLOTS * len(WAYS)
    assert cluster.drains() == 0
    until(lambda: server.stats.in_flight == 0)
