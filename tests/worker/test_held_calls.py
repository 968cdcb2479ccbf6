"""Calls whose caller waits: answered at once whatever the answer is, and with the headers that matter."""

import asyncio
import time

import pytest

from promptmill.hints import Listener
from promptmill.job import LaneState, State
from promptmill.priority import HELD
from promptmill.store import lanes
from tests.conftest import eventually
from tests.worker.endpoint import JSON, chat, endpoint, never, refusal, text_of
from tests.worker.raw_server import http
from tests.worker.workshop import chats, workshop
from worker import recorder as recorder_module
from worker.probe import HANDFUL

HEADERS = ("X-Request-Id: r-1", "X-RateLimit-Remaining: 7", "OpenAI-Processing-Ms: 12", "Retry-After: 3",
           "X-Should-Retry: false", "Server: nginx", "Set-Cookie: a=b", "Date: now")  # fmt: skip
KEPT = {"x-request-id": "r-1", "x-ratelimit-remaining": "7", "openai-processing-ms": "12", "retry-after": "3",
        "x-should-retry": "false"}  # fmt: skip


def good(*headers: str) -> bytes:
    return http("200 OK", b'{"choices":[{"message":{"content":"Hi"}}]}', JSON, *headers)


async def test_a_call_is_in_the_database_and_said_long_before_a_poll_would_find_it(sqlite_db, monkeypatch):
    monkeypatch.setattr(recorder_module, "GATHER_SECONDS", 3600.0)
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        said: list[object] = []
        async with shop.hints.listening(Listener(finished=said.extend)), shop.serving() as drain:
            for n in range(5):
                began = time.monotonic()
                await shop.batch(chats(1), priority=HELD)
                drain.wake()
                await eventually(lambda n=n: len(said) == n + 1)
                assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("answer", [good(*HEADERS), refusal("400 Bad Request", "no", *HEADERS)])
@pytest.mark.parametrize(("priority", "kept"), [(HELD, KEPT), (HELD - 1, {})])
async def test_the_headers_that_matter_are_kept_for_those_who_wait(db, answer, priority, kept):
    async with endpoint(lambda _: answer) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(1), priority=priority)
        await shop.work(batch)
    (result,) = await shop.results(batch)
    assert dict(result.headers) == kept


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [
        ("401 Unauthorized", "unauthorized", 401),
        ("402 Payment Required", "payment_required", 402),
        ("403 Forbidden", "forbidden", 403),
        ("404 Not Found", "model_not_available", 404),
    ],
)
async def test_a_lanes_fault_is_answered_at_once_and_halts_the_lane_all_the_same(db, status, code, number):
    async with endpoint(lambda _: refusal(status, "not you")) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(1), priority=HELD)
        drain = await shop.work(batch)
    (result,) = await shop.results(batch)
    assert (result.state, result.error_code, result.status_code) == (State.FAILED, code, number)
    assert b"not you" in result.body
    assert (drain.counts.failed, drain.counts.waits) == (1, 0)
    (lane,) = await lanes.read(db)
    assert (lane.state, lane.reason, lane.halt_status) == (LaneState.HALTED, "not you", number)
    assert await shop.ledger(batch) == {code: 1}


async def test_who_waits_is_not_held_while_others_of_the_handful_think(sqlite_db):
    async def answers(call) -> bytes | None:
        return refusal("404 Not Found", "no such model") if text_of(call) == "0" else await never(call)

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, grace_seconds=0.0)
        batch = await shop.batch(chats(4), priority=HELD)
        async with shop.serving() as drain:
            await eventually(lambda: drain.counts.failed == 1)
            assert not drain.halts()  # the others may still tell otherwise
            assert drain._calls.holds_any()
    assert await shop.unfinished(batch) == {State.READY: 3}
    assert [result.position for result in await shop.results(batch)] == [0]


async def test_what_was_answered_gets_no_second_ending_when_the_verdict_comes(sqlite_db):
    """The whole handful says 404: eight callers are told so, once each, and the lane halts."""
    together = asyncio.Event()

    async def answers(_) -> bytes:
        if len(upstream.calls) == HANDFUL:
            together.set()
        await together.wait()
        return refusal("404 Not Found", "no such model")

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(20), priority=HELD)
        drain = await shop.work(batch)
    assert len(upstream.calls) == HANDFUL
    assert (drain.counts.failed, drain.counts.waits, drain.counts.retried) == (HANDFUL, 0, 0)
    assert await shop.ledger(batch) == {"model_not_available": HANDFUL}
    assert await shop.unfinished(batch) == {State.READY: 20 - HANDFUL}
    assert drain.halts()


async def test_a_403_among_successes_is_told_once(sqlite_db):
    async with endpoint(lambda call: refusal("403 No") if text_of(call) == "3" else chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(12), priority=HELD)
        drain = await shop.work(batch)
    assert (drain.counts.failed, drain.counts.succeeded) == (1, 11)
    assert not drain.halts()


async def test_a_500_is_tried_again_as_for_everybody(sqlite_db):
    async with endpoint(lambda _: refusal("500 Oops") if len(upstream.calls) == 1 else chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(1), priority=HELD)
        await shop.work(batch)
    (result,) = await shop.results(batch)
    assert (result.state, result.attempts) == (State.SUCCEEDED, 2)
