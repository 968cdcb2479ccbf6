"""Workers that die, and workers that are taken for dead: their jobs run again, and each has one result."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from promptmill.store import workers
from tests.cluster.cluster import Cluster, until

#: What the operator is promised.
BACK_WITHIN_SECONDS = 3 * workers.HEARTBEAT_SECONDS
#: This machine has other things to do as well.
NOISE_SECONDS = 3.0


def _in_hands_of(cluster: Cluster, ids: set[int]) -> int:
    wanted = ", ".join(map(str, ids))
    return int(cluster.one(f"SELECT count(*) FROM jobs WHERE state = 'running' AND worker_id IN ({wanted})"))


@contextmanager
def batches_locked(cluster: Cluster) -> Iterator[None]:
    """Whoever records an answer has to wait, in the middle of its transaction."""
    lock = cluster.db.engine.connect()
    cluster.do(lock.start())
    cluster.do(lock.execute(sa.text("SELECT id FROM promptmill_batches FOR UPDATE")))
    try:
        yield
    finally:
        cluster.do(lock.close())


def waiting_for_locks(cluster: Cluster) -> int:
    """How many transactions have to wait for others."""
    activity = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(cluster.one(activity))


def test_killed_and_frozen(cluster):
    """One of each, at the same time, and a third that goes on."""
    server = cluster.simulator(latency_seconds=(0.5, 2))
    cluster.limits(in_flight=600)
    killed, frozen, healthy = cluster.workers("killed", "frozen", "healthy")
    jobs = 2_500
    cluster.submit(jobs)
    ids = {process.name: cluster.worker_id(process) for process in (killed, frozen, healthy)}
    lost = {ids["killed"], ids["frozen"]}
    until(lambda: min(_in_hands_of(cluster, {worker_id}) for worker_id in lost) > 100, what="hundreds in flight")

    with batches_locked(cluster):
        until(lambda: waiting_for_locks(cluster) >= 3)
        frozen.tell_all(signal.SIGSTOP)  # when it gets the lock, it will not let go of it
        killed.tell_all(signal.SIGKILL)
    began = time.monotonic()
    in_flight = _in_hands_of(cluster, lost)
    until(lambda: _in_hands_of(cluster, lost) == 0, BACK_WITHIN_SECONDS + NOISE_SECONDS)
    took = time.monotonic() - began
    print(f"{in_flight} jobs were back after {took:.1f} s")
    cluster.until_finished(60)
    results = cluster.rows("SELECT id, job_id, epoch, md5(body), xmin::text FROM results ORDER BY id")

    frozen.tell_all(signal.SIGCONT)  # answers wait in its sockets
    until(lambda: "was taken for dead" in frozen.log)
    assert cluster.worker_id(frozen) not in ids.values()
    assert cluster.rows("SELECT id, job_id, epoch, md5(body), xmin::text FROM results ORDER BY id") == results
    cluster.check_each_job_has_one_result(jobs)
    assert cluster.one("SELECT max(attempts) FROM results") == 1  # to be lost with a worker is no failed attempt
    ledger = cluster.ledger()
    assert set(ledger) <= {"succeeded", "worker_lost"}
    assert ledger["succeeded"] == jobs
    assert ledger["worker_lost"] <= in_flight

    healthy.tell(signal.SIGTERM)
    cluster.submit(200, first=jobs)  # the frozen one works on
    healthy.ended(30)
    cluster.until_finished()
    cluster.check_each_job_has_one_result(jobs + 200)
    assert server.stats.peak_in_flight <= 600 + len(lost) * 600
