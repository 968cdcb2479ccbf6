"""Redis stops, comes back empty, and is emptied in mid-run: nothing is lost or doubled, and the run goes on."""

import time

from tests.cluster.cluster import Cluster, Process, until

RPM = 12_000
#: What DESIGN promises without Redis is 80 % of the limit; this machine has other things to do.
USED_WITHOUT = 0.55
AWAY_SECONDS = 4.0
JOBS = 2_500


def rate(cluster: Cluster, seconds: float) -> float:
    """Jobs per second, measured for so long."""
    began, before = time.monotonic(), cluster.done()
    time.sleep(seconds)  # a rate is about time
    return (cluster.done() - before) / (time.monotonic() - began)


def upkeeps(maint: Process) -> int:
    """How often beat asked for upkeep and it was done."""
    return maint.log.count("Task promptmill.upkeep[") // 2  # received, succeeded


def test_the_run_goes_on(cluster):
    server = cluster.simulator(latency_seconds=(0.2, 0.4), requests_per_minute=RPM)
    cluster.limits(rpm=RPM, in_flight=100)
    cluster.workers("w1", "w2")
    maint = cluster.maint()
    cluster.beat()
    cluster.submit(JOBS)
    cluster.until_done(200)

    cluster.redis.stop()
    without = rate(cluster, AWAY_SECONDS)
    answered_without = server.stats.answered[429]
    cluster.redis.start()
    done_before = upkeeps(maint)
    cluster.until_done(cluster.done() + 200)
    with_it = rate(cluster, 3)
    cluster.redis.admin().flushall()
    cluster.until_finished()
    cluster.check_each_job_has_one_result(JOBS)

    until(lambda: upkeeps(maint) > done_before, what="beat and the worker for chores are back")
    until(lambda: cluster.slots() == 2, what="the workers have announced themselves")
    cluster.submit(100, first=JOBS)
    cluster.until_finished()
    cluster.check_each_job_has_one_result(JOBS + 100)
    cluster.check_all_still_run()

    refused = server.stats.answered[429]
    print(f"{without:.0f} jobs/s without Redis, {with_it:.0f} with it again, of {RPM / 60:.0f};", end=" ")
    print(f"{answered_without} and {refused} calls refused, {server.stats.peak_in_flight} at most at once")
    assert without >= USED_WITHOUT * RPM / 60
    assert cluster.ledger()["succeeded"] == JOBS + 100
    assert server.stats.duplicates == 0
    assert refused <= 0.01 * JOBS
    assert server.stats.peak_in_flight <= 100
