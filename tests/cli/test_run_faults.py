"""An endpoint that misbehaves: every job ends, with its answer or a reason, and every call stands in the ledger."""

import socket
import tomllib

from tests.cli.mill import chats

#: A fifth of all calls, in every way there is; a hang lasts longer than the total time-out below.
FAULTS = {"503": 4, "reset": 4, "truncated": 4, "html": 2, "notjson": 2, "close": 2, "hang": 2}


def configure(mill, url: str, **settings: object) -> None:
    """PROMPTMILL_CONFIG with one upstream."""
    lines = [f"{name} = {value!r}" if not isinstance(value, str) else f'{name} = "{value}"' for name, value in
             {"name": "up", "url": url, "key_env": "PROMPTMILL_UPSTREAM_KEY", **settings}.items()]  # fmt: skip
    text = "\n".join(["[[upstream]]", *lines])
    assert tomllib.loads(text)
    (mill.folder / "promptmill.toml").write_text(text)
    mill.monkeypatch.setenv("PROMPTMILL_CONFIG", str(mill.folder / "promptmill.toml"))


def test_a_fifth_of_all_calls_goes_wrong(mill):
    server = mill.simulator(faults=FAULTS, hang_seconds=30, retry_after_seconds=0)
    configure(mill, server.url, total_timeout_seconds=1.0, max_in_flight=100)
    prompts = mill.file("prompts.jsonl", chats(300))
    ended = mill.run("run", prompts, "--db", mill.db, "--out", "out.jsonl", "--json")
    assert ended.code == 0, ended.err
    mill.check_each_job_has_one_result(300)
    assert ended.summary["succeeded"] == 300
    assert server.stats.faults.keys() == FAULTS.keys()
    # One row for every call that arrived, and none for any other.
    assert mill.count("attempts") == server.stats.requests
    ledger = dict(mill.rows("SELECT outcome, count(*) FROM attempts GROUP BY 1"))
    assert ledger["overloaded"] == server.stats.faults["503"]
    assert ledger["body_html"] == server.stats.faults["html"]
    assert ledger["body_not_json"] == server.stats.faults["notjson"]
    assert ledger["body_truncated"] == server.stats.faults["truncated"]
    assert ledger["total_timeout"] == server.stats.faults["hang"]
    assert ledger["succeeded"] == 300
    assert server.stats.duplicates == 0


def test_what_never_works_fails_with_the_reason(mill):
    server = mill.simulator(faults={"reset": 100})
    prompts = mill.file("prompts.jsonl", chats(5))
    ended = mill.work(prompts, server, "--max-attempts", 2, "--json")
    assert ended.code == 3
    assert (ended.summary["failed"], ended.summary["retried"]) == (5, 5)
    assert mill.rows("SELECT error_code, attempts, count(*) FROM results GROUP BY 1, 2") == [("connection_reset", 2, 5)]
    assert "5 x connection_reset: " in ended.err
    assert mill.count("attempts") == server.stats.requests == 10


def test_nobody_listens(mill):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        prompts = mill.file("prompts.jsonl", chats(3))
        ended = mill.run("run", prompts, "--db", mill.db, "--base-url", url, "--max-attempts", 2)
    assert ended.code == 3
    assert mill.rows("SELECT error_code, count(*) FROM results GROUP BY 1") == [("connection_refused", 3)]
    assert "3 x connection_refused: " in ended.err


def test_an_endpoint_that_goes_away_and_comes_back(mill):
    """A restart in the middle costs attempts, and no job."""
    server = mill.simulator()
    prompts = mill.file("prompts.jsonl", chats(400))
    server.set_script([*["ok"] * 100, *["close"] * 150])
    ended = mill.work(prompts, server, "--max-in-flight", 50, "--json")
    assert ended.code == 0, ended.err
    mill.check_each_job_has_one_result(400)
    assert server.stats.duplicates == 0
    assert mill.count("attempts") == server.stats.requests == 550
