"""What is to be expected, on the command line: `--dry-run`, and what `submit` and `status` say of a batch."""

import contextlib
import json
import sqlite3
import time

import pytest

from tests.cli.mill import chats

CONFIG = """
currency = "EUR"

[[upstream]]
name = "up"
url = "{url}"
requests_per_minute = 600

[[price]]
models = ["test/*"]
prompt = 1.0
completion = 10.0
"""


@pytest.fixture
def configured(mill, monkeypatch):
    """A file of settings with a limit and a price."""

    def write(url: str = "http://127.0.0.1:1/v1") -> None:
        path = mill.folder / "mill.toml"
        path.write_text(CONFIG.format(url=url))
        monkeypatch.setenv("PROMPTMILL_CONFIG", str(path))

    return write


def test_a_dry_run_says_what_it_takes_and_leaves_nothing_behind(mill, configured):
    configured()
    prompts = mill.file("in.jsonl", [*chats(100), *chats(20, model="other")])
    ended = mill.run("run", prompts, "--db", mill.db, "--dry-run", "--window", "5s")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == f"{prompts}: 120 jobs"
    assert lines[1] == "other at up: 20 jobs"
    assert "no price for other: set [[price]] in PROMPTMILL_CONFIG" in lines[3]
    assert lines[5] == "test/plain at up: 100 jobs"
    assert lines[6].endswith("in, about 25.6k out (0 to 51.2k), guessed: 256 an answer, since none was seen yet")
    assert lines[7].startswith("  cost    0.26 EUR (0.00")
    time_ = "about 10 s (10 to 20 s) and the time of one call, which is not known yet"
    assert lines[8] == f"  time    {time_}, bounded by its requests per minute"
    assert "  cost    not known" in lines
    assert lines[-2] == f"takes {time_}, would be 5 s late"
    assert lines[-1] == "nothing was stored, and nothing was sent"
    assert sorted(path.name for path in mill.folder.iterdir()) == ["in.jsonl", "mill.toml"]


@pytest.mark.parametrize("command", ["run", "submit"])
def test_the_same_as_one_json_object(mill, configured, command):
    configured()
    prompts = mill.file("in.jsonl", chats(100))
    ended = mill.run(command, prompts, "--db", mill.db, "--dry-run", "--json")
    told = json.loads(ended.out)
    assert (ended.code, told["object"], told["request_counts"]) == (0, "batch.dry_run", {"total": 100, "invalid": 0})
    (lane,) = told["lanes"]
    assert (lane["model"], lane["jobs"], lane["currency"], lane["limited_by"]) == (
        "test/plain", 100, "EUR", "requests_per_minute",
    )  # fmt: skip
    assert lane["call_seconds"] is None
    assert told["estimated_seconds"] == {"low": 10.0, "likely": 10.0, "high": 20.0}
    assert (told["expires_at"], told["holds_deadline"]) == (None, None)
    assert not mill.db.exists()


BAD = [
    '{"custom_id": "twice", "model": "m", "prompt": "x"}',
    "{not json",
    '{"custom_id": "twice", "model": "m", "prompt": "y"}',
    '{"model": "m"}',
    '{"custom_id": "twice", "model": "other", "prompt": "z"}',
]


@pytest.mark.parametrize("from_pipe", [False, True])
def test_wrong_lines_are_told_as_run_tells_them(mill, from_pipe):
    prompts = mill.file("bad.jsonl", BAD)
    name, stdin = ("-", prompts.read_bytes()) if from_pipe else (prompts, b"")
    dry = mill.run("run", name, "--db", mill.db, "--dry-run", stdin=stdin)
    wet = mill.run("run", name, "--db", mill.db, stdin=stdin)
    assert (dry.code, dry.out) == (wet.code, wet.out) == (2, "")
    named = "custom_id" if from_pipe else "custom_id 'twice'"  # a pipe cannot be read again for the name
    assert f"line 3: {named} was seen before, on line 1" in dry.err
    assert dry.err.replace(" 'twice'", "") == wet.err.replace(" 'twice'", "")


def test_wrong_lines_that_would_be_skipped(mill):
    prompts = mill.file("bad.jsonl", BAD)
    ended = mill.run("submit", prompts, "--db", mill.db, "--dry-run", "--skip-bad-lines")
    assert ended.code == 0
    assert f"{prompts}: 1 jobs, 4 wrong lines would be skipped" in ended.out
    assert "line 3: custom_id 'twice' was seen before" in ended.out
    assert "other at " not in ended.out  # its only line is one of them
    assert not mill.db.exists()


def test_a_run_that_would_be_resumed_is_told_of_as_far_as_it_is_left(mill, configured):
    server = mill.simulator()
    configured(server.url)
    prompts = mill.file("in.jsonl", chats(30))
    running = mill.start("run", prompts, "--db", mill.db, "--rpm", "300", "--base-url", server.url, "--grace", "0")
    until_some = time.monotonic() + 20
    while mill.count_done() < 5:
        assert time.monotonic() < until_some
        time.sleep(0.05)
    running.signal(2)
    running.ended()
    done = mill.count_done()
    words = ("--db", mill.db, "--base-url", server.url, "--rpm", "300", "--dry-run")
    ended = mill.run("run", prompts, *words)
    assert f"would be resumed: {done} of 30 are done" in ended.out
    assert f"{30 - done} jobs" in ended.out
    assert "guessed" not in ended.out  # some were answered
    assert "the time of one call" not in ended.out
    anew = mill.run("run", prompts, *words, "--fresh", "--json")
    assert json.loads(anew.out)["request_counts"]["total"] == 30
    assert mill.count_done() == done


def test_what_cannot_be(mill):
    prompts = mill.file("in.jsonl", chats(1))
    assert "goes with --dry-run" in mill.run("submit", prompts, "--db", mill.db, "--json").err
    assert "leave --append out" in mill.run("submit", prompts, "--db", mill.db, "--dry-run", "--append", "x").err
    assert mill.run("run", mill.folder / "none.jsonl", "--db", mill.db, "--dry-run").code == 2
    assert mill.run("run", mill.file("empty.jsonl", []), "--db", mill.db, "--dry-run").code == 2


def test_submit_and_status_say_how_long_it_takes(mill, configured):
    configured()
    ended = mill.run("submit", mill.file("in.jsonl", chats(1_200)), "--db", mill.db, "--window", "1h")
    assert "no worker is at work yet; about 2 min once one is" in ended.err
    shown = mill.run("status", ended.out.strip(), "--db", mill.db).out
    assert "no worker is at work yet; about 2 min once one is" in shown
    assert "0.00 EUR spent, about " in shown
    with contextlib.closing(sqlite3.connect(mill.db)) as connection, connection:
        worker = "INSERT INTO promptmill_workers (name, started_at, heartbeat_at) VALUES ('w', ?, ?)"
        connection.execute(worker, (time.time(), time.time()))
    shown = mill.run("status", ended.out.strip(), "--db", mill.db).out
    (line,) = [line for line in shown.splitlines() if line.startswith("about 2 min left (2 to 4 min), finishes ")]
    assert line.endswith(" min before its deadline")
    told = json.loads(mill.run("status", ended.out.strip(), "--db", mill.db, "--json").out)
    assert told["foresight"]["seconds_left"] == {"low": 120.0, "likely": 120.0, "high": 240.0}
    assert (told["foresight"]["holds_deadline"], told["foresight"]["reason"]) == (True, None)
    assert told["bill"]["spent"] == 0.0
    assert told["bill"]["cost_to_come"]["likely"] > 3.0
