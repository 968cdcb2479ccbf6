"""PostgreSQL restarts in mid-run: workers wait and go on, no answer is lost, and none is asked for twice."""

import time
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.postgres import Postgres

JOBS = 1_500


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server of our own: the others' must not be restarted."""
    made = Postgres()
    yield made
    made.close()


@pytest.fixture
def cluster_on_it(tmp_path, postgres: Postgres, redis_server) -> Iterator[Cluster]:
    """On that server."""
    made = Cluster(tmp_path, postgres.url, redis_server)
    try:
        yield made
    finally:
        made.close()


def test_workers_wait_and_go_on(cluster_on_it, postgres):
    cluster = cluster_on_it
    server = cluster.simulator(latency_seconds=(0.3, 1.0))
    cluster.limits(in_flight=200)
    cluster.workers("w1", "w2")
    cluster.maint()
    cluster.beat()
    cluster.submit(JOBS)
    for mode, done in (("fast", 200), ("immediate", 600)):
        cluster.until_done(done)
        assert server.stats.in_flight
        cluster.do(cluster.db.aclose())
        postgres.stop(mode)
        # Calls that were out are answered, and their answers wait.
        until(lambda: server.stats.in_flight == 0)
        assert cluster.logs(["w1", "w2"]).count("the database is away") >= 2
        postgres.start()
    cluster.until_finished()
    cluster.check_each_job_has_one_result(JOBS)
    assert cluster.rows("SELECT attempts, count(*) FROM results GROUP BY 1") == [(1, JOBS)]
    assert cluster.ledger() == {"succeeded": JOBS}
    assert server.stats.requests == JOBS
    assert cluster.drains() == 2  # nobody was taken for dead
    cluster.check_all_still_run()
    assert "Traceback" not in cluster.logs()


def test_connections_that_are_cut_again_and_again(cluster):
    server = cluster.simulator(latency_seconds=(0.05, 0.1))
    cluster.limits(in_flight=200)
    cluster.workers("w1", "w2")
    cluster.submit(JOBS)
    cut = 0
    while cluster.one("SELECT count(*) FROM batches WHERE finished_at IS NULL"):
        cut += cluster.one(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND application_name = 'promptmill' AND datname = current_database()"
        )
        time.sleep(0.25)  # and every time in another moment of theirs
    print(f"{cut} connections were cut")
    cluster.check_each_job_has_one_result(JOBS)
    assert cluster.rows("SELECT attempts, count(*) FROM results GROUP BY 1") == [(1, JOBS)]
    assert server.stats.requests == JOBS
    cluster.check_all_still_run()
