"""What an operator does: ask what is wrong, mend it, follow a batch, stop one."""

import json
import signal

from cli import doctor
from promptmill.settings import load
from tests.cluster.cluster import Cluster, until

JOBS = 400


def wrong(cluster: Cluster) -> dict[str, str]:
    """What `promptmill doctor` finds wrong: subject → words."""
    findings = cluster.do(doctor.examine(load(cluster.environ)))
    return {finding.subject: finding.words for finding in findings if finding.level == "wrong"}


def test_what_is_wrong_is_said_and_mended_without_a_restart(cluster):
    server = cluster.simulator(latency_seconds=(0.1, 0.1))
    assert cluster.cli("doctor").code == 0  # nothing to do is no illness

    cluster.submit(JOBS)
    assert "start one: celery -A worker.app worker -Q drain" in wrong(cluster)["workers"]
    ended = cluster.cli("doctor", "--quiet")
    assert ended.code == 1
    assert "none is alive while jobs are ready" in ended.out

    server.set_faults({"401": 100})  # a wrong key
    worker = cluster.worker()
    until(lambda: cluster.one("SELECT state FROM lanes") == "halted")
    (subject,) = found = wrong(cluster)
    assert subject == "lane test/plain"
    assert "promptmill resume" in found[subject]
    burnt = server.stats.requests
    assert burnt <= 8
    until(lambda: cluster.running() == 0)
    assert cluster.rows("SELECT state, attempts, count(*) FROM jobs GROUP BY 1, 2") == [("ready", 0, JOBS)]

    server.set_faults({})
    assert "resumed test/plain" in cluster.cli("resume").out
    cluster.until_finished()
    cluster.check_each_job_has_one_result(JOBS)
    assert server.stats.requests == JOBS + burnt
    assert wrong(cluster) == {}

    cluster.redis.stop()
    assert list(wrong(cluster)) == ["redis"]
    assert "0 jobs" not in cluster.cli("resume").out  # what needs no Redis does without
    cluster.redis.start()
    assert wrong(cluster) == {}

    worker.tell_all(signal.SIGKILL)
    cluster.rows("UPDATE workers SET heartbeat_at = heartbeat_at - 60")
    assert "stopped without a word" in wrong(cluster)["workers"]


def test_tables_that_are_behind_and_a_database_that_is_away(cluster):
    assert wrong(cluster) == {}
    cluster.rows("UPDATE schema SET version_num = '0000'")
    assert "run: promptmill migrate" in wrong(cluster)["database"]
    cluster.environ["PROMPTMILL_DATABASE_URL"] = cluster.database_url.replace("/test_", "/no_such_test_")
    assert "no_such_test_" in wrong(cluster)["database"]
    cluster.environ["PROMPTMILL_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/nothing"
    assert "cannot be used" in wrong(cluster)["database"]


async def test_clocks_that_differ(db, clock):
    found = await doctor._clock(db, clock())  # the tests' clock is years behind
    assert found.level == ("ok" if db.is_sqlite else "wrong")
    if not db.is_sqlite:
        assert "set up NTP" in found.words


def test_a_batch_is_followed_and_stopped(cluster):
    server = cluster.simulator(latency_seconds=(0.5, 0.5))
    server.set_script([*["ok"] * 20, *["slow"] * JOBS])  # slow: 5 s, so that calls are out when the command looks
    cluster.limits(in_flight=20)
    batch = cluster.submit(JOBS)
    watching = cluster.start_cli("watch", batch, "--json")
    cluster.workers("w1")
    cluster.until_done(20)
    until(lambda: server.stats.in_flight >= 10)
    ended = cluster.cli("cancel", batch)
    assert ended.code == 0
    assert "calls under way are kept" in ended.out
    assert watching.popen.wait(20) == 3
    summary = json.loads(watching.log.splitlines()[-1])
    assert summary["cancelled"] + summary["succeeded"] == JOBS
    assert cluster.one("SELECT state FROM batches") == "cancelled"
    assert cluster.rows("SELECT state, count(*) FROM results GROUP BY 1 ORDER BY 1") == [
        ("cancelled", summary["cancelled"]),
        ("succeeded", summary["succeeded"]),
    ]
    assert server.stats.requests == summary["succeeded"]  # what was paid for is kept
