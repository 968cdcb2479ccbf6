"""The limits as a client meets them: 429s, how long to wait, and the headers, with the clock in the test's hand."""

from collections.abc import AsyncIterator

import httpx
import pytest

from cli.simulate.app import create_app
from cli.simulate.config import SimulateConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rehearsal:
    """A client of an app whose clock stands still until it is moved."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clients: list[httpx.AsyncClient] = []

    def __call__(self, **settings):
        app = create_app(SimulateConfig(**settings), clock=self.clock)
        self.clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test/v1"))
        return self.clients[-1]


@pytest.fixture
async def rehearse() -> AsyncIterator[Rehearsal]:
    rehearsal = Rehearsal()
    yield rehearsal
    for client in rehearsal.clients:
        await client.aclose()


async def test_requests_above_the_rate_are_told_when_to_come_back(rehearse, chat):
    client = rehearse(requests_per_minute=120)
    assert [(await client.post("/chat/completions", json=chat())).status_code for _ in range(3)] == [200, 200, 429]
    refused = await client.post("/chat/completions", json=chat())
    error = refused.json()
    assert error["error"]["type"] == error["error_type"] == "dynamic_request_limited"
    assert error["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "500"
    rehearse.clock.now += 0.5
    assert (await client.post("/chat/completions", json=chat())).status_code == 200


async def test_fractional_waits_are_rounded_up(rehearse, chat):
    client = rehearse(requests_per_minute=7)
    await client.post("/chat/completions", json=chat())
    refused = await client.post("/chat/completions", json=chat())
    assert refused.headers["retry-after"] == "9"
    assert refused.headers["retry-after-ms"] == "8572"


async def test_tokens_are_charged_as_the_answers_report_them(rehearse, chat):
    client = rehearse(tokens_per_minute=6000)
    used, answers = 0, 0
    while (answer := await client.post("/chat/completions", json=chat(f"Number {answers}"))).status_code == 200:
        used += answer.json()["usage"]["total_tokens"]
        answers += 1
    assert answer.json()["error_type"] == "dynamic_token_limited"
    assert answers > 0
    # A second's worth at once, and no more than that.
    assert used <= 100
    rehearse.clock.now += 60
    assert (await client.post("/chat/completions", json=chat())).status_code == 200


async def test_a_refusal_for_tokens_takes_no_request(rehearse, chat):
    client = rehearse(requests_per_minute=6000, tokens_per_minute=60)
    first = await client.post("/chat/completions", json=chat())
    assert first.headers["x-ratelimit-remaining-requests"] == "99"
    for _ in range(5):
        refused = await client.post("/chat/completions", json=chat())
        assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "99"


async def test_a_bad_request_takes_nothing(rehearse, chat):
    client = rehearse(requests_per_minute=60)
    assert (await client.post("/chat/completions", json={"model": "m"})).status_code == 400
    assert (await client.post("/chat/completions", json=chat())).status_code == 200


async def test_strict_means_never_more_in_any_minute(rehearse, chat):
    client = rehearse(requests_per_minute=5, window="strict")
    statuses = [(await client.post("/chat/completions", json=chat())).status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    rehearse.clock.now += 59.9
    assert (await client.post("/chat/completions", json=chat())).status_code == 429
    rehearse.clock.now += 0.1
    assert (await client.post("/chat/completions", json=chat())).status_code == 200


async def test_each_key_has_limits_of_its_own_over_all_models(rehearse, chat):
    client = rehearse(requests_per_minute=60)
    mine, yours = {"authorization": "Bearer mine"}, {"authorization": "Bearer yours"}
    assert (await client.post("/chat/completions", json=chat(), headers=mine)).status_code == 200
    assert (await client.post("/chat/completions", json=chat(), headers=yours)).status_code == 200
    other_model = chat() | {"model": "test/other"}
    assert (await client.post("/chat/completions", json=other_model, headers=mine)).status_code == 429


async def test_both_families_of_headers_are_on_every_answer(rehearse, chat):
    client = rehearse(requests_per_minute=600, tokens_per_minute=60_000)
    answers = [
        await client.post("/chat/completions", json=chat()),
        await client.post("/chat/completions", json={}),
        await client.get("/models"),
    ]
    for answer in answers:
        assert answer.headers["x-ratelimit-limit"] == "10"
        assert answer.headers["x-ratelimit-limit-requests"] == "600"
        assert answer.headers["x-tokenlimit-limit"] == "1000"
        assert answer.headers["x-ratelimit-limit-tokens"] == "60000"
        assert answer.headers["x-ratelimit-remaining"] == answer.headers["x-ratelimit-remaining-requests"] == "9"
        assert answer.headers["x-ratelimit-reset"] == "0.000"
        assert answer.headers["x-ratelimit-reset-requests"] == "100ms"
    used = answers[0].json()["usage"]["total_tokens"]
    assert answers[0].headers["x-tokenlimit-remaining"] == str(1000 - used)
    assert answers[0].headers["x-ratelimit-reset-tokens"] == f"{used}ms"


async def test_together_names_the_wait_and_openai_the_time_until_all_is_free(rehearse, chat):
    client = rehearse(requests_per_minute=3, window="strict")
    for _ in range(3):
        await client.post("/chat/completions", json=chat())
        rehearse.clock.now += 15
    refused = await client.post("/chat/completions", json=chat())
    assert refused.headers["x-ratelimit-reset"] == "15.000"
    assert refused.headers["x-ratelimit-reset-requests"] == "45s"


@pytest.mark.parametrize(
    ("style", "together", "openai"), [("together", True, False), ("openai", False, True), ("none", False, False)]
)
async def test_one_family_can_be_had_alone(rehearse, chat, style, together, openai):
    client = rehearse(requests_per_minute=600, rate_limit_headers=style)
    answer = await client.post("/chat/completions", json=chat())
    assert ("x-ratelimit-limit" in answer.headers) is together
    assert ("x-ratelimit-limit-requests" in answer.headers) is openai


async def test_without_limits_there_is_nothing_to_say(rehearse, chat):
    answer = await rehearse().post("/chat/completions", json=chat())
    assert not [name for name in answer.headers if "limit" in name]
