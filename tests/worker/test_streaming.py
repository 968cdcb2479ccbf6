"""Answers that are passed on while they come: what is said, what is kept, and what a failure means before and after."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from promptmill.hints import Listener, Piece
from promptmill.job import State
from promptmill.outcome import Usage
from promptmill.priority import HELD
from promptmill.request import streams as asks_for_stream
from tests.conftest import eventually
from tests.worker.endpoint import JSON, refusal
from tests.worker.raw_server import Peer, http, serve
from tests.worker.workshop import KEY, Workshop, chats, workshop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\nX-Request-Id: r-9\r\n\r\n"
SSE = HEAD % b"text/event-stream; charset=utf-8"
BEGUN = b'data: {"choices":[{"delta":{"content":"Hel"}}],"usage":null}\n\n'
MORE = b'data: {"choices":[{"delta":{"content":"lo"}}]}\n\n'
USED = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"too busy","type":"overloaded"}}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = chunk(b"")


@dataclass
class Caller:
    """Reads along."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def heard(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)

    def check_nothing_is_missing(self) -> None:
        length = 0
        for piece in self.pieces:
            assert piece.offset == length
            length += len(piece.data)


@asynccontextmanager
async def streams(db, script: Callable[[Peer, int], object], **terms):
    """A shop with one job that asks for a stream, its caller, and the upstream: `script` is told which call it is."""

    async def each(peer: Peer) -> None:
        await peer.read_request()
        await script(peer, len(server.requests))

    async with serve(each) as server:
        shop = workshop(db, server.url, **terms)
        caller = Caller()
        batch = await shop.batch(chats(1), priority=HELD)
        (body,) = chats(1)
        await shop.rewrite(batch, {**body, "stream": True})
        async with shop.hints.listening(Listener(piece=caller.pieces.append)):
            yield shop, batch, caller, server


def saying(*answers: bytes) -> Callable[[Peer, int], object]:
    """Each call gets the next of these; the last one again and again."""

    async def script(peer: Peer, call: int) -> None:
        await peer.write(answers[min(call, len(answers)) - 1])

    return script


async def one_result(shop: Workshop, batch):
    await shop.work(batch)
    (result,) = await shop.results(batch)
    return result


async def test_pieces_are_said_as_they_come_and_the_whole_is_kept(db):
    heard_first = asyncio.Event()

    async def script(peer: Peer, _) -> None:
        await peer.write(SSE + chunk(BEGUN))
        await heard_first.wait()
        await peer.write(chunk(MORE[:20]))
        await peer.write(chunk(MORE[20:]) + chunk(USED) + chunk(DONE) + END)

    async with streams(db, script) as (shop, batch, caller, server):
        task = asyncio.create_task(one_result(shop, batch))
        await eventually(lambda: caller.heard == BEGUN)
        heard_first.set()
        result = await task
    whole = BEGUN + MORE + USED + DONE
    assert (result.state, result.status_code, result.body, result.request_id) == (State.SUCCEEDED, 200, whole, "r-9")
    assert result.usage == Usage(4, 2)
    assert result.content_type == "text/event-stream; charset=utf-8"
    assert dict(result.headers) == {"x-request-id": "r-9"}
    assert caller.heard == whole
    caller.check_nothing_is_missing()
    assert {(piece.job, piece.content_type) for piece in caller.pieces} == {
        ((batch.id, 0), "text/event-stream; charset=utf-8")
    }
    assert json.loads(server.requests[0].body)["stream"] is True


@pytest.mark.parametrize(
    "body", [BEGUN + DONE, BEGUN, BEGUN.rstrip(), BEGUN.replace(b"\n", b"\r\n"), b": wait\n\n" + BEGUN + DONE]
)
async def test_a_clean_end_with_an_event_is_an_answer(sqlite_db, body):
    async with streams(sqlite_db, saying(SSE + chunk(body) + END)) as (shop, batch, caller, _):
        result = await one_result(shop, batch)
    assert (result.state, result.body, result.usage) == (State.SUCCEEDED, body, Usage())
    assert caller.heard == body


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (refusal("500 Oops", "the disk is on fire"), "server_error"),
        (b"", "connection_reset"),
        (SSE + chunk(ERROR) + END, "overloaded"),
        (SSE + chunk(b": nothing yet\n\n"), "body_truncated"),
        (SSE + END, "body_invalid"),
        (http("200 OK", b'{"error":{"message":"slow down","code":"429"}}', JSON), "rate_limited"),
    ],
)
async def test_a_failure_of_which_nothing_was_said_is_like_any_other(sqlite_db, first, code):
    good = SSE + chunk(BEGUN) + chunk(DONE) + END
    async with streams(sqlite_db, saying(first, good)) as (shop, batch, caller, _):
        result = await one_result(shop, batch)
    assert (result.state, result.body, caller.heard) == (State.SUCCEEDED, BEGUN + DONE, BEGUN + DONE)
    assert await shop.ledger(batch) == {code: 1, "succeeded": 1}


async def test_a_refusal_is_told_in_the_upstreams_words_without_the_key(sqlite_db):
    wrong = refusal("400 Bad Request", f"not with {KEY}", "X-RateLimit-Limit: 5")
    async with streams(sqlite_db, saying(wrong)) as (shop, batch, caller, _):
        result = await one_result(shop, batch)
    assert (result.state, result.status_code, result.error_code) == (State.FAILED, 400, "rejected")
    assert b"not with [key]" in result.body
    assert dict(result.headers) == {"x-ratelimit-limit": "5"}
    assert not caller.pieces


@pytest.mark.parametrize(
    ("rest", "words"), [(b"", "closed the connection"), (chunk(ERROR) + END, "too busy"), (b"zz\r\n", "HTTP")]
)
async def test_a_failure_after_a_part_was_said_is_the_end(sqlite_db, rest, words):
    async def script(peer: Peer, _) -> None:
        await peer.write(SSE + chunk(BEGUN))
        await eventually(lambda: caller.heard)
        await peer.write(rest)

    async with streams(sqlite_db, script) as (shop, batch, caller, server):
        result = await one_result(shop, batch)
    assert (result.state, result.error_code, result.status_code) == (State.FAILED, "stream_broken", 200)
    assert result.body.startswith(BEGUN)
    assert result.body.startswith(caller.heard)
    assert words in (result.error_message or "")
    assert len(server.requests) == 1


async def test_a_stop_in_the_middle_is_the_end_and_one_before_it_is_not(sqlite_db):
    async def script(peer: Peer, call: int) -> None:
        await peer.write(SSE + (chunk(BEGUN) if call == 2 else b""))
        await peer.until_closed()

    async with streams(sqlite_db, script, grace_seconds=0.0) as (shop, batch, caller, server):
        async with shop.serving():
            await eventually(lambda: server.requests)
        assert await shop.unfinished(batch) == {State.READY: 1}
        async with shop.serving():
            await eventually(lambda: caller.heard)
    (result,) = await shop.results(batch)
    assert (result.state, result.error_code, result.body) == (State.FAILED, "stream_broken", BEGUN)


async def test_plain_json_in_answer_to_a_stream_is_an_ordinary_answer_in_one_piece(sqlite_db):
    body = b'{"choices":[{"message":{"content":"Hi"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    async with streams(sqlite_db, saying(http("200 OK", body, JSON))) as (shop, batch, caller, _):
        result = await one_result(shop, batch)
    assert (result.state, result.body, result.usage) == (State.SUCCEEDED, body, Usage(1, 2))
    assert [(piece.offset, piece.data) for piece in caller.pieces] == [(0, body)]


async def test_sound_is_passed_on_as_it_comes(sqlite_db):
    async def script(peer: Peer, _) -> None:
        await peer.write(HEAD % b"audio/pcm" + chunk(b"\0\1"))
        await eventually(lambda: caller.heard)
        await peer.write(chunk(b"\2\3") + END)

    async with streams(sqlite_db, script) as (shop, batch, caller, _):
        await shop.rewrite(batch, {"url": "/v1/audio/speech", "method": "POST",
                                   "body": {"model": "m", "input": "hi", "voice": "v", "stream": True}})  # fmt: skip
        result = await one_result(shop, batch)
    assert (result.state, result.body) == (State.SUCCEEDED, b"\0\1\2\3")
    assert caller.heard == result.body


async def test_who_does_not_ask_for_a_stream_gets_none(sqlite_db):
    body = b'{"choices":[{"message":{"content":"Hi"}}]}'
    async with streams(sqlite_db, saying(http("200 OK", body, JSON))) as (shop, batch, caller, _):
        (line,) = chats(1)
        await shop.rewrite(batch, {**line, "stream": False})
        result = await one_result(shop, batch)
    assert result.state is State.SUCCEEDED
    assert not caller.pieces


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"stream":true}', True),
        (b'{"stream" : true, "messages": []}', True),
        (b'{"stream":false}', False),
        (b'{"stream":null}', False),
        (b'{"stream":1}', False),
        (b'{"metadata":{"stream":true}}', False),
        (b'{"messages":[{"role":"user","content":"\\"stream\\":true"}]}', False),
        (b'{"odd":"\\ud800","stream":true}', True),
        (b'"stream"', False),
        (b'{"stream"', False),
    ],
)
def test_what_asks_for_a_stream(body, wanted):
    assert asks_for_stream(body) is wanted
