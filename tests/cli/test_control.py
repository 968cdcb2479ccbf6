"""`promptmill pause`, `resume`, `cancel`, `retry`, `change`, `seal`, `tenants`, and a canary: as people use them."""

import asyncio
import json
import os
import pty
import subprocess
import sys
import time

import pytest

from promptmill.engine import Database
from promptmill.store import lanes, workers
from tests.cli.mill import REPOSITORY, Mill, chats, until
from tests.worker.endpoint import chat, never, refusal, text_of


def batch(mill: Mill) -> dict:
    """The newest batch, as machines are told of it."""
    return json.loads(mill.run("status", "--db", mill.db, "--json").out)["batches"][0]


def newest(mill: Mill) -> str:
    """Its id."""
    return str(batch(mill)["id"])


def do(mill: Mill, *words: object, code: int = 0) -> str:
    """`promptmill WORDS --db …`; returns what it printed."""
    ended = mill.run(*words, "--db", mill.db)
    assert ended.code == code, ended.err
    return ended.out


def test_a_bad_canary_costs_no_more_than_itself(mill: Mill):
    mended = False

    def answered(call):
        return chat() if mended or int(text_of(call)) % 2 else refusal("400 Bad Request", "no such voice")

    upstream = mill.endpoint(answered)
    path = mill.file("in.jsonl", chats(60))
    ended = mill.work(path, upstream, "--canary", 10, "--canary-percent", 20, "-q")
    assert (ended.code, len(upstream.calls)) == (3, 10)
    assert "5 of 10 failed (50 %), more than 20 %" in ended.err
    assert "5 x rejected: no such voice" in ended.err
    assert f"promptmill resume {newest(mill)}" in ended.err
    again = mill.work(path, upstream, "--canary", 10, "--canary-percent", 20, "-q")
    assert (again.code, len(upstream.calls)) == (3, 10)  # until somebody resumes it
    mended = True
    assert "5 jobs start again" in do(mill, "retry", newest(mill))
    assert "it was paused: canary: 5 of 10 failed" in do(mill, "resume", newest(mill))
    assert mill.work(path, upstream, "-q").code == 0
    assert len(upstream.calls) == 65


def test_a_good_canary_asks_and_without_a_terminal_says_how_to_go_on(mill: Mill):
    upstream = mill.endpoint(lambda _: chat())
    path = mill.file("in.jsonl", chats(20))
    ended = mill.work(path, upstream, "--canary", 5, "--canary-ask", "-q")
    assert (ended.code, len(upstream.calls)) == (3, 5)
    assert "canary: 5 of 5 succeeded" in ended.err
    assert batch(mill)["waits_for"] == "paused"
    do(mill, "resume", newest(mill))
    assert mill.work(path, upstream, "-q").code == 0
    assert len(upstream.calls) == 20


@pytest.mark.parametrize(("answer", "code", "calls"), [("y\n", 0, 20), ("\n", 3, 5)])
def test_on_a_terminal_the_canary_waits_for_an_answer(mill: Mill, answer, code, calls):
    upstream = mill.endpoint(lambda _: chat())
    path = mill.file("in.jsonl", chats(20))
    ours, theirs = pty.openpty()
    words = ["run", path, "--db", mill.db, "--base-url", upstream.url, "--canary", "5", "--canary-ask", "-q"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, words)], cwd=mill.folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    mill.started.append(process)
    os.close(theirs)
    said = b""
    while b"go on? [y/N]" not in said:
        said += os.read(ours, 4096)
    assert b"5 of 5 succeeded" in said
    assert len(upstream.calls) == 5
    os.write(ours, answer.encode())
    assert process.wait(20) == code
    assert len(upstream.calls) == calls
    os.close(ours)


def test_a_run_that_is_paused_ends_and_goes_on_after_resume(mill: Mill):
    async def slow(_):
        await asyncio.sleep(0.05)
        return chat()

    server = mill.endpoint(slow)
    path = mill.file("in.jsonl", chats(100))
    running = mill.start_work(path, server, "--max-in-flight", 4, "-q")
    until(lambda: mill.count_done() > 8)
    assert do(mill, "pause", newest(mill)) == f"paused {newest(mill)}\n"
    ended = running.ended()
    assert ended.code == 3
    assert "paused by hand; go on with: promptmill resume" in ended.err
    assert mill.count_done() < 100
    do(mill, "resume", newest(mill))
    assert mill.work(path, server, "-q").code == 0
    mill.check_each_job_has_one_result(100)


def test_cancel_with_abort_does_not_wait_for_calls_under_way(mill: Mill):
    server = mill.endpoint(never)
    running = mill.start_work(mill.file("in.jsonl", chats(50)), server, "--max-in-flight", 5, "-q")
    until(lambda: server.in_flight == 5)
    said = do(mill, "cancel", newest(mill), "--abort")
    assert "is cancelling: 45 cancelled, 0 done; 5 calls under way are broken off" in said
    assert running.ended(10).code == 3
    assert (batch(mill)["state"], batch(mill)["cancelled"]) == ("cancelled", 50)
    assert "there is nothing left to cancel" in mill.run("cancel", newest(mill), "--db", mill.db).err


def test_a_single_job_is_cancelled_and_its_call_broken_off_only_where_that_is_asked(mill: Mill):
    server = mill.endpoint(lambda call: chat() if text_of(call) == "2" else never(call))
    running = mill.start_work(mill.file("in.jsonl", chats(3)), server, "--max-in-flight", 2, "-q")
    until(lambda: server.in_flight == 2)
    first, _, last = [f"job_{newest(mill).removeprefix('batch_')}-{n}" for n in range(3)]
    refused = mill.run("cancel", first, "--db", mill.db)
    assert (refused.code, "unless --abort breaks it off" in refused.err) == (2, True)
    assert do(mill, "cancel", last) == f"{last} is cancelled\n"
    assert do(mill, "cancel", first, "--abort") == f"{first} is cancelled; its call is broken off\n"
    until(lambda: batch(mill)["cancelled"] == 2)
    assert "nothing left to cancel" in mill.run("cancel", last, "--db", mill.db).err
    assert "no job job_" in mill.run("cancel", f"{last}9", "--db", mill.db).err
    do(mill, "cancel", newest(mill), "--abort")
    assert running.ended(10).code == 3


def test_retry_failed_sends_only_those(mill: Mill):
    mended = False

    def answered(call):
        return chat() if mended or int(text_of(call)) % 10 > 2 else refusal("400 Bad Request")

    upstream = mill.endpoint(answered)
    path = mill.file("in.jsonl", chats(50))
    assert mill.work(path, upstream, "-q").code == 3
    mended = True
    assert do(mill, "retry", newest(mill), "--failed") == f"{newest(mill)}: 15 jobs start again\n"
    out = mill.folder / "out.jsonl"
    assert mill.work(path, upstream, "-q", "--out", out).code == 0
    assert len(upstream.calls) == 65
    assert mill.rows("SELECT outcome, count(*) FROM attempts GROUP BY outcome ORDER BY 1") == [
        ("rejected", 15), ("succeeded", 50)
    ]  # fmt: skip
    assert len(out.read_text().splitlines()) == 50
    assert do(mill, "retry", newest(mill)).endswith(": 0 jobs start again\n")
    assert (
        "no job with custom_id 'nobody'"
        in mill.run("retry", newest(mill), "--custom-id", "nobody", "--db", mill.db).err
    )


def test_bad_lines_become_jobs_when_their_model_has_an_upstream(mill: Mill, monkeypatch):
    upstream = mill.endpoint(lambda _: chat())
    config = mill.folder / "mill.toml"
    config.write_text(f'[[upstream]]\nname = "up"\nurl = "{upstream.url}"\nmodels = ["old/*"]\n')
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(config))
    monkeypatch.delenv("PROMPTMILL_UPSTREAM_URL", raising=False)
    path = mill.file("in.jsonl", [*chats(2, model="old/a"), *chats(1, model="new/b", first=2)])
    run = ["run", path, "--skip-bad-lines", "-q"]
    do(mill, *run, code=3)
    assert do(mill, "retry", newest(mill), "--invalid").splitlines()[1].startswith("1 keep their result")
    config.write_text(config.read_text().replace('"old/*"', '"old/*", "new/*"'))
    assert "1 job starts again" in do(mill, "retry", newest(mill), "--invalid")
    assert (batch(mill)["state"], batch(mill)["invalid"]) == ("in_progress", 0)


def test_change_says_what_holds_now(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(3)), "--priority", "background", "--window", "24h")
    said = do(mill, "change", newest(mill), "--priority", "high", "--max-in-flight", 5, "--budget-cost", 2.5)
    assert said == f"changed {newest(mill)}: priority is 1,000, max_in_flight is 5, budget_cost is 2.5\n"
    assert do(mill, "change", newest(mill), "--max-in-flight", "none").endswith(": max_in_flight is none\n")
    assert do(mill, "change", newest(mill), "--within", 60, "--weight", 2).count(" is ") == 2
    now = batch(mill)
    assert (now["priority"], now["weight"], now["max_in_flight"]) == (1_000, 2.0, None)
    assert mill.rows("SELECT count(DISTINCT deadline), min(deadline) FROM jobs") == [(1, now["deadline"])]
    for words, message in (
        (("--window", "soon"), "--window must be like"),
        (("--weight", 0), "--weight must be 0.001 at least"),
        (("--rpm", "many"), "--rpm is 'many'"),
        (("--not-before", "soon"), "--not-before is 'soon'"),
        ((), "say what is to be changed"),
    ):
        ended = mill.run("change", newest(mill), *words, "--db", mill.db)
        assert (ended.code, message in ended.err) == (2, True), ended.err


def test_an_open_batch_takes_jobs_until_it_is_sealed(mill: Mill):
    first, second = mill.file("a.jsonl", chats(2)), mill.file("b.jsonl", chats(3, first=2))
    batch_id = do(mill, "submit", first, "--open").strip()
    assert do(mill, "submit", second, "--append", batch_id) == f"{batch_id}\n"
    assert batch(mill)["total"] == 5
    bad = mill.file("bad.jsonl", [*chats(1), b"{no"])
    ended = mill.run("submit", bad, "--append", batch_id, "--db", mill.db)
    assert (ended.code, "line 2" in ended.err, batch(mill)["total"]) == (2, True, 5)
    for more in (("--priority", "high"), ("--skip-bad-lines",)):
        ended = mill.run("submit", second, "--append", batch_id, *more, "--db", mill.db)
        assert (ended.code, "--append" in ended.err) == (2, True)
    do(mill, "seal", batch_id)
    ended = mill.run("submit", second, "--append", batch_id, "--db", mill.db)
    assert (ended.code, "sealed" in ended.err, batch(mill)["total"]) == (2, True, 5)


def test_lanes_tenants_and_everything_are_paused_by_name(mill: Mill):
    path = mill.file("in.jsonl", chats(2))
    do(mill, "submit", path, "--tenant", "acme", "--weight", 2)
    assert do(mill, "tenants", "set", "acme", "--weight", 3, "--max-in-flight", 5) == "changed the tenant acme\n"
    (default, acme) = json.loads(do(mill, "tenants", "list", "--json"))["tenants"]
    assert (acme["weight"], acme["max_in_flight"], acme["usage"]["jobs"]) == (3.0, 5, 2)
    assert default["usage"]["jobs"] == 0
    for words in (("--lane", "test/plain"), ("--tenant", "acme"), ("--all",)):
        assert do(mill, "pause", *words).startswith("paused")
    assert do(mill, "doctor").count("• paused: ") == 3
    told = do(mill, "status", newest(mill))
    for words in ("everything is paused", "its tenant is paused", "test/plain is paused by hand"):
        assert words in told
    for words in (("--all",), ("--tenant", "acme"), ("test/plain",)):
        assert "resumed" in do(mill, "resume", *words)
    assert "still paused" not in do(mill, "resume")
    ended = mill.run("pause", "--lane", "none/such", "--db", mill.db)
    assert (ended.code, "there are: 1: test/plain" in ended.err) == (2, True)
    assert "say what to pause" in mill.run("pause", "--db", mill.db).err


def test_a_lane_that_no_worker_serves_is_told_with_what_to_do(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(2)))
    nobody = mill.run("doctor", "--db", mill.db)
    assert (nobody.code, "none is alive while jobs are ready; start one: promptmill serve" in nobody.out) == (1, True)

    async def work_for_another_upstream() -> None:
        db = Database(str(mill.db))
        worker_id = await workers.register(db, name="w", now=time.time())
        says = dict.fromkeys([row.id for row in await lanes.read(db)], workers.NOT_CONFIGURED)
        await workers.heartbeat(db, worker_id=worker_id, in_flight=0, now=time.time(), waiting_for=says)
        await db.aclose()

    asyncio.run(work_for_another_upstream())
    told = "no worker serves https://api.together.xyz/v1; start one that knows it (PROMPTMILL_UPSTREAM_URL"
    found = mill.run("doctor", "--db", mill.db)
    assert (found.code, f"✗ lane test/plain: {told}" in found.out) == (1, True)
    assert f"test/plain: {told}" in do(mill, "status")
    assert "no worker serves its upstream (see promptmill doctor)" in do(mill, "status", newest(mill))


def test_what_starts_later_is_not_started_before(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(2)), "--not-before", "+2h", "--window", "1h")
    row = batch(mill)
    assert row["waits_for"].startswith("from ")
    assert row["deadline"] == pytest.approx(row["not_before"] + 3_600)
