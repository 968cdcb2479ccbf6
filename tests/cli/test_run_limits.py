"""Limits are kept: requests and tokens per minute, calls at once; and a slow call is nobody's burden but its own."""

import asyncio
import time

import pytest

from cli import progress
from tests.cli.mill import chats
from tests.worker.endpoint import chat, refusal, text_of


def test_6000_requests_a_minute_bring_no_429(mill):
    """The endpoint lets half a second's worth through at once, and no more than 100 a second after that."""
    server = mill.simulator(requests_per_minute=6_000, burst_seconds=0.5)
    prompts = mill.file("prompts.jsonl", chats(400))
    started = time.monotonic()
    ended = mill.work(prompts, server, "--rpm", 6_000)
    took = time.monotonic() - started
    assert ended.code == 0
    assert server.stats.answered[429] <= 2  # half a percent
    assert took > 3.0
    mill.check_each_job_has_one_result(400)


def test_as_few_as_60_requests_a_minute(mill):
    server = mill.simulator(requests_per_minute=60, burst_seconds=2)
    prompts = mill.file("prompts.jsonl", chats(4))
    started = time.monotonic()
    assert mill.work(prompts, server, "--rpm", 60).code == 0
    assert server.stats.requests == 4
    assert 2.5 < time.monotonic() - started < 20.0


def test_tokens_a_minute(mill):
    """20 tokens a second and some 12 to 48 for an answer."""
    server = mill.simulator(tokens_per_minute=6_000, burst_seconds=10, answer_tokens=(30, 30))
    prompts = mill.file("prompts.jsonl", [{**each, "max_tokens": 30} for each in chats(14)])
    started = time.monotonic()
    assert mill.work(prompts, server, "--tpm", 6_000).code == 0
    took = time.monotonic() - started
    used = server.stats.prompt_tokens + server.stats.completion_tokens
    assert server.stats.answered[429] == 0
    assert used <= 8 * 34 + 100 * took  # a handful, and the rate


def test_calls_at_once(mill):
    server = mill.simulator(latency_seconds=(0.01, 0.03))
    prompts = mill.file("prompts.jsonl", [*chats(150), *chats(150, model="another/model")])
    assert mill.work(prompts, server, "--max-in-flight", 17).code == 0
    assert 12 < server.stats.peak_in_flight <= 17


def test_a_429_pauses_and_uses_up_no_attempt(mill):
    server = mill.simulator(requests_per_minute=1_200, burst_seconds=0.2)
    prompts = mill.file("prompts.jsonl", chats(60))
    ended = mill.work(prompts, server, "--max-attempts", 1, "--json")
    assert ended.code == 0, ended.err
    assert server.stats.answered[429] > 0
    assert ended.summary["retried"] == 0
    assert mill.one("SELECT max(attempts) FROM results") == 1


def test_a_limit_that_nobody_told_is_learned_and_kept(mill):
    """The first wave is refused for the most part; after that calls start about as fast as the endpoint lets them."""
    server = mill.simulator(requests_per_minute=3_000, burst_seconds=1)
    prompts = mill.file("prompts.jsonl", chats(500))
    ended = mill.work(prompts, server, "--json")
    assert ended.code == 0, ended.err
    assert server.stats.answered[429] < 300  # the wave has 256 calls
    mill.check_each_job_has_one_result(500)


def test_a_call_of_minutes_holds_nobody_back(mill):
    """The first call is answered when all others are done; those are not to take 3 s longer for it."""
    others_done = asyncio.Event()

    async def answers(call) -> bytes:
        if text_of(call) == "0":
            await others_done.wait()
        elif len(endpoint.calls) == 100:
            others_done.set()
        return chat()

    endpoint = mill.endpoint(answers)
    started = time.monotonic()
    assert mill.work(mill.file("prompts.jsonl", chats(100)), endpoint, "--max-in-flight", 16).code == 0
    assert time.monotonic() - started < 15.0


@pytest.mark.parametrize("for_machines", [False, True], ids=["people", "machines"])
def test_the_view_says_what_it_waits_for(mill, for_machines):
    mill.monkeypatch.setattr(progress, "_PLAIN_EVERY_SECONDS", 0.2)
    came = []

    def answers(_) -> bytes:
        came.append(1)
        return chat() if len(came) > 1 else refusal("429 Too Many Requests", "slow down", "Retry-After: 1")

    prompts = mill.file("prompts.jsonl", chats(3))
    ended = mill.work(prompts, mill.endpoint(answers), "--max-in-flight", 1, *["--json"] * for_machines)
    if for_machines:
        said = [event["waiting_for"] for event in ended.events if event["event"] == "progress"]
    else:
        said = [line for line in ended.err.splitlines() if line.startswith("0/3 done")]
    assert any("test/plain paused until " in words and ": slow down" in words for words in said)
