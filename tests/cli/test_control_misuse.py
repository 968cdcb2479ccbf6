"""What people type by mistake, and what processes that were killed leave: refused in words that help, or mended."""

import json
import sqlite3
import subprocess
import time

import pytest

from tests.cli.mill import Mill, chats, until
from tests.cli.test_control import batch, do, newest
from tests.worker.endpoint import chat, never, refusal, text_of

NO_WINDOW = "--within must be above 0 seconds, and 365 days (31,536,000) at most"


@pytest.mark.parametrize("within", ["inf", "nan", "1e300", "-1", "0", "31536001"])
def test_a_deadline_that_is_none_is_refused_before_anything_is_stored(mill: Mill, within):
    path = mill.file("in.jsonl", chats(2))
    ended = mill.run("submit", path, "--within", within, "--db", mill.db)
    assert (ended.code, NO_WINDOW in ended.err) == (2, True), ended.err
    assert not mill.db.exists()
    do(mill, "submit", path)
    ended = mill.run("change", newest(mill), "--within", within, "--db", mill.db)
    assert (ended.code, NO_WINDOW in ended.err) == (2, True), ended.err
    assert batch(mill)["deadline"] is None


@pytest.mark.parametrize(
    "words",
    [("--weight", "inf"), ("--weight", "nan"), ("--rpm", "inf"), ("--rpm", "nan"), ("--tpm", "inf"),
     ("--budget-cost", "inf"), ("--budget-cost", "nan"), ("--not-before", "inf"), ("--not-before", "nan"),
     ("--not-before", "1e300"), ("--not-before", "+999999999d"), ("--not-before", "9999-12-31", "--window", "365d")],
    ids=" ".join,
)  # fmt: skip
def test_a_number_that_is_none_is_refused(mill: Mill, words):
    path = mill.file("in.jsonl", chats(1))
    do(mill, "submit", path)
    for command in (("submit", path), ("change", newest(mill))):
        ended = mill.run(*command, *words, "--db", mill.db)
        assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err
    assert mill.count("batches") == 1
    assert mill.count("files") == 1
    if words[0] in ("--weight", "--rpm", "--tpm"):
        assert mill.run("tenants", "set", "default", *words, "--db", mill.db).code == 2


@pytest.mark.parametrize("reference", ["", "batch_"])
@pytest.mark.parametrize(
    "command",
    ["cancel", "change --weight 2", "retry", "pause", "resume", "seal", "watch", "results", "submit in.jsonl --append"],
)
def test_an_empty_name_is_no_batch(mill: Mill, command, reference):
    mill.file("in.jsonl", chats(1))
    do(mill, "submit", "in.jsonl")
    ended = mill.run(*command.split(), reference, "--db", mill.db)
    assert ended.code == 2, ended
    assert (batch(mill)["state"], batch(mill)["weight"], batch(mill)["waits_for"]) == ("in_progress", 1.0, None)


def test_status_of_an_empty_name(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(1)))
    ended = mill.run("status", "", "--db", mill.db)
    assert (ended.code, "'' names no batch" in ended.err) == (2, True), ended.err
    assert newest(mill) in do(mill, "status", "batch_")


def test_a_misspelt_model_is_not_resumed(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(1)))
    ended = mill.run("resume", "nope", "--db", mill.db)
    assert (ended.code, "no lane 'nope'; there are: 1: test/plain" in ended.err) == (2, True), ended.err
    assert do(mill, "resume", "test/plain") == "no lane of test/plain is halted or paused\n"


def test_a_tenant_is_not_made_by_a_change_that_is_refused(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(1)))
    for words in (("acmee", "--weight", 0), ("a/b", "--weight", 2)):
        assert mill.run("tenants", "set", *words, "--db", mill.db).code == 2
    assert [each["name"] for each in json.loads(do(mill, "tenants", "list", "--json"))["tenants"]] == ["default"]


def test_an_inbox_is_not_cancelled_as_a_whole(mill: Mill):
    do(mill, "submit", mill.file("in.jsonl", chats(1)))
    with sqlite3.connect(mill.db) as connection:
        connection.execute("UPDATE promptmill_batches SET is_inbox = 1, is_open = 1")
    ended = mill.run("cancel", newest(mill), "--db", mill.db)
    assert (ended.code, "cancel them one by one" in ended.err) == (2, True), ended.err
    assert batch(mill)["state"] == "in_progress"


def test_what_a_killed_run_had_out_is_cancelled_with_the_rest(mill: Mill):
    server = mill.endpoint(never)
    running = mill.start_work(mill.file("in.jsonl", chats(20)), server, "--max-in-flight", 5, "-q")
    until(lambda: server.in_flight == 5)
    running.kill()
    assert do(mill, "cancel", newest(mill)) == f"{newest(mill)} is cancelled: 20 cancelled, 0 done\n"
    assert mill.rows("SELECT outcome, count(*) FROM attempts GROUP BY outcome") == [("worker_lost", 5)]


def test_a_run_that_lives_keeps_its_calls(mill: Mill):
    server = mill.endpoint(never)
    running = mill.start_work(mill.file("in.jsonl", chats(20)), server, "--max-in-flight", 5, "-q")
    until(lambda: server.in_flight == 5)
    assert "5 calls under way are kept when they end" in do(mill, "cancel", newest(mill))
    assert "5 calls under way are broken off" in do(mill, "cancel", newest(mill), "--abort")
    assert running.ended(10).code == 3
    assert mill.one("SELECT count(*) FROM attempts WHERE outcome = 'worker_lost'") == 0


def test_what_a_killed_submit_left_is_removed(mill: Mill):
    process = mill.start("submit", "-", "--db", mill.db, stdin=subprocess.PIPE).process
    for each in chats(5_000):
        process.stdin.write(json.dumps(each).encode() + b"\n")
    process.stdin.flush()

    def half_read() -> bool:
        try:
            return bool(mill.count("jobs"))
        except sqlite3.OperationalError:
            return False

    until(half_read)
    process.kill()
    process.wait()
    batch_id = newest(mill)
    ended = mill.run("cancel", batch_id, "--db", mill.db)
    assert (ended.code, "still being read by another command" in ended.err) == (2, True), ended.err
    with sqlite3.connect(mill.db) as connection:  # some time later
        connection.execute("UPDATE promptmill_batches SET validator_until = ?", (time.time() - 1,))
    for command in ("pause", "seal", "change --weight 2", "retry"):
        ended = mill.run(*command.split(), batch_id, "--db", mill.db)
        assert (ended.code, f"nothing was sent: promptmill cancel {batch_id}" in ended.err) == (2, True), ended.err
    assert "is removed: the command that read its lines is gone" in do(mill, "cancel", batch_id)
    assert [mill.count(table) for table in ("batches", "jobs", "files", "file_parts")] == [0, 0, 0, 0]


def test_a_run_that_was_cancelled_says_so(mill: Mill):
    def answered(call):
        return refusal("400 Bad Request") if text_of(call) == "0" else chat()

    upstream = mill.endpoint(answered)
    path = mill.file("in.jsonl", chats(10))
    mill.work(path, upstream, "--canary", 4, "--canary-percent", 0, "-q")
    do(mill, "cancel", newest(mill))
    ended = mill.work(path, upstream, "-q")
    assert ended.code == 3
    assert "3 succeeded, 1 failed, 6 cancelled, 0 waiting; " in ended.err
    assert f"promptmill retry {newest(mill)} --cancelled --db {mill.db}, and then: promptmill run" in ended.err
    do(mill, "retry", newest(mill), "--cancelled")
    assert "9 succeeded, 1 failed, 0 waiting; " in mill.work(path, upstream, "-q").err


def test_a_named_job_that_succeeded_is_told(mill: Mill):
    upstream = mill.endpoint(lambda _: chat())
    path = mill.file("in.jsonl", chats(2))
    assert mill.work(path, upstream, "-q").code == 0
    said = do(mill, "retry", newest(mill), "--custom-id", "line-1")
    assert said.splitlines()[1] == "1 of those that are named succeeded already, and are not sent again"
