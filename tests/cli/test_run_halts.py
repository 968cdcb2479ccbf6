"""A wrong key, an empty account, a model that is not deployed: said once and clearly, and the rest can be resumed."""

import pytest

from tests.cli.mill import chats
from tests.worker.endpoint import chat, refusal


def said_once(err: str, words: str) -> bool:
    return err.count(words) == 1


def test_a_wrong_key_stops_within_20_calls_and_the_right_one_finishes(mill):
    server = mill.simulator(api_key="sk-right", latency_seconds=(0.05, 0.1))
    prompts = mill.file("prompts.jsonl", chats(1_000))
    mill.monkeypatch.setenv("PROMPTMILL_UPSTREAM_KEY", "sk-wrong-one")
    ended = mill.work(prompts, server, "--max-in-flight", 200, "--out", "out.jsonl")
    assert ended.code == 3
    assert server.stats.requests <= 20
    assert said_once(ended.err, "answered 401: ")
    assert said_once(ended.err, "check the key (PROMPTMILL_UPSTREAM_KEY)")
    assert "sk-wrong-one" not in ended.err
    assert "1,000 jobs wait; when it is mended, the same line goes on: promptmill run " in ended.err
    assert mill.rows("SELECT state, attempts, count(*) FROM jobs GROUP BY 1, 2") == [("ready", 0, 1_000)]
    assert (mill.folder / "out.jsonl").read_bytes() == b""

    mill.monkeypatch.setenv("PROMPTMILL_UPSTREAM_KEY", "sk-right")
    assert mill.work(prompts, server, "--max-in-flight", 200).code == 0
    mill.check_each_job_has_one_result(1_000)
    assert b"sk-wrong-one" not in mill.db.read_bytes()


def test_an_empty_account(mill):
    endpoint = mill.endpoint(lambda _: refusal("402 Payment Required", "Your account is empty."))
    ended = mill.work(mill.file("prompts.jsonl", chats(100)), endpoint)
    assert ended.code == 3
    assert len(endpoint.calls) <= 20
    assert said_once(ended.err, "answered 402: Your account is empty.")
    assert said_once(ended.err, "check the account's balance")


def test_a_model_that_is_not_there_stops_its_own_jobs_only(mill):
    deployed = []

    def answers(call) -> bytes:
        missing = b"gone/model" in call.body and not deployed
        return refusal("404 Not Found", "The model is not currently supported.") if missing else chat()

    endpoint = mill.endpoint(answers)
    there, missing = chats(30), chats(30, model="gone/model")
    prompts = mill.file("prompts.jsonl", [line for pair in zip(there, missing, strict=True) for line in pair])
    ended = mill.work(prompts, endpoint, "--json")
    assert ended.code == 3
    assert (ended.summary["succeeded"], ended.summary["failed"], ended.summary["total"]) == (30, 0, 60)
    assert len(endpoint.calls) <= 30 + 20
    assert said_once(ended.err, "answered 404: The model is not currently supported.")
    assert said_once(ended.err, "check the model's name (gone/model), or deploy it")
    assert "30 jobs wait" in ended.err
    deployed.append(True)
    assert mill.work(prompts, endpoint).code == 0
    mill.check_each_job_has_one_result(60)


def test_a_key_that_is_revoked_in_the_middle(mill):
    endpoint = mill.endpoint(lambda _: chat() if len(endpoint.calls) <= 50 else refusal("401 Unauthorized", "revoked"))
    prompts = mill.file("prompts.jsonl", chats(300))
    ended = mill.work(prompts, endpoint, "--max-in-flight", 10, "--json")
    assert ended.code == 3
    assert (ended.summary["succeeded"], ended.summary["failed"]) == (50, 0)
    assert len(endpoint.calls) <= 50 + 5 + 10
    assert said_once(ended.err, "answered 401: revoked")
    endpoint.answers = lambda _: chat()
    assert mill.work(prompts, endpoint).code == 0
    mill.check_each_job_has_one_result(300)


def test_a_wrong_key_on_a_lane_that_worked_yesterday(mill):
    server = mill.simulator(api_key="sk-right")
    mill.monkeypatch.setenv("PROMPTMILL_UPSTREAM_KEY", "sk-right")
    assert mill.work(mill.file("yesterday.jsonl", chats(5)), server).code == 0
    mill.monkeypatch.setenv("PROMPTMILL_UPSTREAM_KEY", "sk-wrong")
    prompts = mill.file("prompts.jsonl", chats(500, first=5))
    ended = mill.work(prompts, server, "--max-in-flight", 50, "--json")
    assert ended.code == 3
    assert server.stats.requests <= 5 + 2 * 50
    assert ended.summary["failed"] == 0
    mill.monkeypatch.setenv("PROMPTMILL_UPSTREAM_KEY", "sk-right")
    assert mill.work(prompts, server).code == 0


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PROMPTMILL_UPSTREAM_KEY", "sk-one\nsk-two", "key has characters that a header cannot carry"),
        ("PROMPTMILL_CA_FILE", "/nowhere/ca.pem", "the CA file /nowhere/ca.pem cannot be used"),
    ],
)
def test_what_cannot_work_at_all_is_said_before_the_first_call(mill, variable, value, words):
    mill.monkeypatch.setenv(variable, value)
    prompts = mill.file("prompts.jsonl", chats(3))
    ended = mill.run("run", prompts, "--db", mill.db, "--base-url", "https://127.0.0.1:1/v1")
    assert ended.code == 2
    assert words in ended.err
    assert mill.count("results") == 0
