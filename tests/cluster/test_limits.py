"""Four workers on one limit use it, and do not exceed it; not even when one of them dies."""

import signal
import time

from tests.cluster.cluster import until

RPM = 3_000
#: A second's worth at once is what the endpoint lets in; then it is strict.
BURST_SECONDS = 1.0
IN_FLIGHT = 40
JOBS = 700
#: Bounds for a machine that has other things to do; the bench has the sharp ones, 97 % and 0.5 %.
USED = 0.85
REFUSED = 0.01


def test_the_limit_is_used_and_kept(cluster):
    server = cluster.simulator(
        latency_seconds=(0.2, 0.3), requests_per_minute=RPM, burst_seconds=BURST_SECONDS, retry_after_seconds=1
    )
    cluster.limits(rpm=RPM, in_flight=IN_FLIGHT)
    killed, *others = cluster.workers("killed", "w2", "w3", "w4")
    cluster.submit(JOBS)
    stats = server.stats

    def used_while(start: int, end: int) -> float:
        """The part of the limit that is used while so many calls are answered."""
        until(lambda: stats.answered[200] >= start)
        began, before = time.monotonic(), stats.answered[200]
        until(lambda: stats.answered[200] >= end)
        return (stats.answered[200] - before) / (RPM / 60 * (time.monotonic() - began))

    with_four = used_while(100, 350)
    killed.tell_all(signal.SIGKILL)
    with_three = used_while(400, 620)
    cluster.until_finished()
    cluster.check_each_job_has_one_result(JOBS)
    refused = stats.answered[429] / stats.requests
    seconds = [count for _, count in sorted(stats.per_second.items())]
    print(
        f"used {with_four:.1%} by four, {with_three:.1%} by three; refused {refused:.2%};"
        f" at most {stats.peak_in_flight} at once, {max(seconds)} in a second"
    )
    assert with_four >= USED
    assert with_three >= USED
    assert refused <= REFUSED
    assert stats.peak_in_flight <= IN_FLIGHT
    assert all(worker.is_running for worker in others)
