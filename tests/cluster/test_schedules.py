"""Schedules in a cluster: whoever looks first fires, and nobody a second time."""

import time

from promptmill.settings import load
from tests.cluster.cluster import Cluster, until
from tests.worker.timetable import Timetable

LINE = b'{"body": {"model": "test/plain", "messages": [{"role": "user", "content": "It is {{ fire_time }}."}]}}\n'


def schedule(cluster: Cluster, name: str, at: float) -> None:
    timetable = Timetable(cluster.db, time.time, load(cluster.environ))
    cluster.do(timetable.add(name, at=at, lines=[LINE]))


def late(cluster: Cluster) -> list[float]:
    """How long after its time each fire had its batch."""
    return [row[0] for row in cluster.rows("SELECT carried_out_at - at FROM promptmill_schedule_fires ORDER BY at")]


def count(cluster: Cluster, state: str) -> int:
    return int(cluster.one(f"SELECT count(*) FROM batches WHERE state = '{state}'"))


def test_drains_and_the_clock_fire_once(cluster: Cluster):
    server = cluster.simulator()
    cluster.maint()
    cluster.beat()
    until(lambda: cluster.rows("SELECT name FROM leases"))  # beat has asked, and maint has answered
    schedule(cluster, "by the clock", time.time() + 0.2)  # nobody drains: only beat asks
    until(lambda: count(cluster, "in_progress") == 1)
    (by_the_clock,) = late(cluster)
    cluster.workers("w1", "w2")
    at = time.time() + 1.0
    for n in range(3):
        schedule(cluster, f"s{n}", at + n * 0.1)
    until(lambda: count(cluster, "completed") == 4)
    assert cluster.one("SELECT count(*) FROM promptmill_schedule_fires WHERE state = 'fired'") == 4
    assert cluster.one("SELECT count(*) FROM batches") == 4
    assert server.stats.requests == 4
    by_drains = late(cluster)[1:]
    print(f"after its time: by the clock {by_the_clock:.2f} s, by drains {max(by_drains):.2f} s")
    assert by_the_clock < 7.0
    assert max(by_drains) < 2.0
    cluster.check_all_still_run()
