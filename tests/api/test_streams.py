"""`stream: true` through the gateway: passed on while it comes, whole at the end, and honest when it breaks."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from contextlib import asynccontextmanager

from promptmill.hints import Piece
from tests.api.mill import chat_body, mill_at
from tests.api.server import new_client
from tests.conftest import eventually
from tests.worker.endpoint import JSON, chat, refusal
from tests.worker.raw_server import Peer, http, serve

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
REST = b'data: {"choices":[{"delta":{"content":"lo"}}]}\n\ndata: [DONE]\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def streams(db, script: Callable[[Peer, int], object], **overrides):
    async def each(peer: Peer) -> None:
        await peer.read_request()
        await script(peer, len(server.requests))

    async with serve(each) as server, mill_at(db, server.url, **overrides) as made:
        yield made, server


def asked(made, client=None, **headers):
    body = chat_body(stream=True)
    return (client or made.client).stream("POST", "/v1/chat/completions", json=body, headers=headers)


async def test_the_first_piece_is_there_before_the_last_is_sent(db):
    may_end = asyncio.Event()

    async def script(peer: Peer, _) -> None:
        await peer.write(HEAD + chunk(FIRST))
        await may_end.wait()
        await peer.write(chunk(REST) + chunk(b""))

    async with streams(db, script) as (made, _), asked(made) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = answer.aiter_raw()
        assert await anext(pieces) == FIRST
        may_end.set()
        assert b"".join([piece async for piece in pieces]) == REST


async def test_pieces_that_were_lost_come_with_the_result(sqlite_db, monkeypatch):
    """Hints may be lost: here every second one is."""
    may_end = asyncio.Event()
    said = 0

    async def script(peer: Peer, _) -> None:
        await peer.write(HEAD + chunk(FIRST))
        await may_end.wait()
        for part in (REST[:10], REST[10:30], REST[30:]):
            await peer.write(chunk(part))
            await asyncio.sleep(0.01)
        await peer.write(chunk(b""))

    async with streams(sqlite_db, script) as (made, _):
        house_waiting = made.drain._herald._hints
        say = house_waiting.piece

        async def forgetful(piece: Piece) -> None:
            nonlocal said
            said += 1
            if said % 2:
                await say(piece)

        monkeypatch.setattr(house_waiting, "piece", forgetful)
        async with asked(made) as answer:
            may_end.set()
            assert await answer.aread() == FIRST + REST


async def test_a_stream_that_breaks_says_so_in_the_stream(db):
    async def script(peer: Peer, _) -> None:
        await peer.write(HEAD + chunk(FIRST))
        await asyncio.sleep(0.05)
        peer.reset()

    async with streams(db, script) as (made, server), asked(made) as answer:
        body = await answer.aread()
        assert body.startswith(FIRST)
        told = json.loads(body[len(FIRST) :].removeprefix(b"data: "))
        assert told["error"]["code"] == "stream_broken"
        assert len(server.requests) == 1


async def test_a_refusal_of_a_stream_is_an_ordinary_answer(sqlite_db):
    async def script(peer: Peer, _) -> None:
        await peer.write(refusal("400 Bad Request", "no such voice"))

    async with streams(sqlite_db, script) as (made, _), asked(made) as answer:
        assert answer.status_code == 400
        assert json.loads(await answer.aread()) == {"error": {"message": "no such voice"}}


async def test_an_upstream_that_does_not_stream_answers_anyway(sqlite_db):
    async def script(peer: Peer, _) -> None:
        await peer.write(chat("whole"))

    async with streams(sqlite_db, script) as (made, _), asked(made) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(await answer.aread())["choices"][0]["message"]["content"] == "whole"


async def test_a_fault_before_the_first_piece_is_tried_again_unseen(sqlite_db):
    async def script(peer: Peer, call: int) -> None:
        if call == 1:
            await peer.write(http("503 Service Unavailable", b"{}", JSON, "Retry-After: 0"))
        else:
            await peer.write(HEAD + chunk(FIRST + REST) + chunk(b""))

    async with streams(sqlite_db, script) as (made, server), asked(made) as answer:
        assert answer.status_code == 200
        assert await answer.aread() == FIRST + REST
        assert len(server.requests) == 2


async def test_who_left_in_the_middle_is_given_the_whole_when_it_asks_again(db):
    may_end = asyncio.Event()

    async def script(peer: Peer, _) -> None:
        await peer.write(HEAD + chunk(FIRST))
        await may_end.wait()
        await peer.write(chunk(REST) + chunk(b""))

    async with streams(db, script) as (made, server):
        async with new_client(base_url=made.serving.url) as client, asked(made, client) as answer:
            assert await anext(answer.aiter_raw()) == FIRST
        with contextlib.suppress(asyncio.CancelledError):
            again = asyncio.create_task(_whole(made))
            await asyncio.sleep(0)
            may_end.set()
            assert await again == FIRST + REST
        await eventually(lambda: made.drain.counts.succeeded == 1)
        assert len(server.requests) == 1


async def _whole(made) -> bytes:
    async with asked(made, **{"X-Stainless-Retry-Count": "1"}) as answer:
        return await answer.aread()
