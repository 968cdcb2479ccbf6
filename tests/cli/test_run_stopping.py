"""Ctrl-C and SIGTERM: what is under way may end, what is not goes back, and the next run finishes."""

import re
import signal
import subprocess

import pytest

from tests.cli.mill import chats, until
from tests.worker.endpoint import chat


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_one_lets_calls_end_and_gives_back_the_rest(mill, number):
    server = mill.simulator(latency_seconds=(0.3, 0.3))
    prompts = mill.file("prompts.jsonl", chats(200))
    run = mill.start_work(prompts, server, "--max-in-flight", 8)
    until(lambda: mill.count_done() >= 8 and server.stats.in_flight >= 4)
    run.signal(number)
    ended = run.ended()
    assert ended.code == 130
    assert re.search(r"stopping: waiting up to 10 s for \d calls under way", ended.err)
    (line,) = (line for line in ended.err.splitlines() if line.startswith("resume with: "))
    assert line.removeprefix("resume with: ").startswith("promptmill run ")
    assert "Traceback" not in ended.err
    done = mill.count_done()
    assert server.stats.requests == done  # every call was let end
    assert mill.rows("SELECT state, attempts, count(*) FROM jobs GROUP BY 1, 2") == [("ready", 0, 200 - done)]

    server.reset()
    words = line.removeprefix("resume with: promptmill ").split()
    assert mill.run(*words, "--max-in-flight", 100).code == 0
    assert server.stats.requests == 200 - done
    mill.check_each_job_has_one_result(200)


def test_two_give_everything_back_at_once(mill):
    server = mill.simulator(latency_seconds=(60, 60))
    prompts = mill.file("prompts.jsonl", chats(20))
    run = mill.start_work(prompts, server, "--grace", 60)
    until(lambda: server.stats.in_flight == 8)
    run.signal(signal.SIGINT)
    assert b"stopping" in run.process.stderr.readline()
    run.signal(signal.SIGINT)
    ended = run.ended(5)
    assert ended.code == 130
    assert mill.rows("SELECT state, attempts, count(*) FROM jobs GROUP BY 1, 2") == [("ready", 0, 20)]
    assert mill.rows("SELECT outcome, counted, count(*) FROM attempts GROUP BY 1, 2") == [("stopped", 0, 8)]


def test_the_grace_is_not_waited_for_longer_than_it_is(mill):
    server = mill.simulator(latency_seconds=(60, 60))
    prompts = mill.file("prompts.jsonl", chats(3))
    run = mill.start_work(prompts, server, "--grace", 0.3)
    until(lambda: server.stats.in_flight == 3)
    run.signal(signal.SIGTERM)
    assert run.ended(5).code == 130
    assert mill.rows("SELECT state, count(*) FROM jobs GROUP BY 1") == [("ready", 3)]


def test_while_standard_input_is_waited_for(mill):
    server = mill.simulator()
    run = mill.start_work("-", server, stdin=subprocess.PIPE)
    run.process.stdin.write(b'{"prompt": "half of it", "model": "m"}\n')
    run.process.stdin.flush()
    until(lambda: mill.db.exists() and mill.rows("SELECT name FROM sqlite_master WHERE name LIKE '%batches'"))
    until(lambda: mill.count("batches"))
    run.signal(signal.SIGINT)
    ended = run.ended(5)
    assert ended.code == 130
    assert "nothing was sent" in ended.err
    assert mill.count("batches") == 0
    assert server.stats.requests == 0


def test_one_that_comes_with_the_last_answer_changes_nothing(mill):
    release = []

    async def answers(_) -> bytes:
        run.signal(signal.SIGINT)
        release.append(1)
        return chat()

    endpoint = mill.endpoint(answers)
    run = mill.start_work(mill.file("prompts.jsonl", chats(1)), endpoint, "--out", "out.jsonl")
    ended = run.ended()
    assert ended.code == 0
    assert len((mill.folder / "out.jsonl").read_bytes().splitlines()) == 1
