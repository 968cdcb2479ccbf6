"""Each fault as a client sees it that reads the socket itself."""

import asyncio
import json
import time

import httpx
import pytest

from cli.simulate import misbehaviour


def head_and_body(answer: bytes) -> tuple[str, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().lower(), body


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 418, 422, 429, 500, 502, 503, 504, 529, 599])
async def test_a_status(start, http, chat, status):
    server = await start(faults={str(status): 100})
    answer = await http.post(f"{server.url}/chat/completions", json=chat())
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    assert ("retry-after" in answer.headers) is (status in (429, 503))
    assert server.stats.faults == {str(status): 1}
    assert server.stats.answered == {status: 1}
    assert server.stats.distinct_bodies_answered == 0


async def test_an_injected_429_looks_like_a_real_one(start, http, chat):
    server = await start(faults={"429": 100}, retry_after_seconds=0.25)
    answer = await http.post(f"{server.url}/chat/completions", json=chat())
    assert answer.json()["error_type"] == "dynamic_request_limited"
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("1", "250")


async def test_reset_is_a_reset(start, raw, chat):
    server = await start(faults={"reset": 100})
    with pytest.raises(ConnectionResetError):
        await raw(server, json.dumps(chat()).encode())
    assert server.stats.faults == {"reset": 1}
    assert not server.stats.answered


async def test_close_is_an_end_without_an_answer(start, raw, chat):
    server = await start(faults={"close": 100})
    assert await raw(server, json.dumps(chat()).encode()) == b""


async def test_truncated_announces_more_than_it_sends(start, raw, chat):
    server = await start(faults={"truncated": 100})
    head, body = head_and_body(await raw(server, json.dumps(chat()).encode()))
    announced = int(head.partition("content-length: ")[2].split()[0])
    assert 0 < len(body) < announced


async def test_a_truncated_stream_has_no_end(start, raw, chat):
    server = await start(faults={"truncated": 100})
    _, body = head_and_body(await raw(server, json.dumps(chat(stream=True)).encode()))
    assert b"data: {" in body
    assert b"[DONE]" not in body
    assert not body.endswith(b"0\r\n\r\n")


async def test_httpx_sees_broken_connections_as_errors(start, http, chat):
    server = await start()
    server.set_script(["reset", "close", "truncated"])
    seen = []
    for _ in range(3):
        with pytest.raises(httpx.TransportError) as caught:
            await http.post(f"{server.url}/chat/completions", json=chat())
        seen.append(type(caught.value))
    assert seen == [httpx.ReadError, httpx.RemoteProtocolError, httpx.RemoteProtocolError]


async def test_answers_that_are_none(start, http, chat):
    server = await start()
    server.set_script(["html", "notjson", "empty", "nochoices"])
    html, notjson, empty, nochoices = [await http.post(f"{server.url}/chat/completions", json=chat()) for _ in range(4)]
    assert {answer.status_code for answer in (html, notjson, empty, nochoices)} == {200}
    assert html.headers["content-type"].startswith("text/html")
    assert html.text.startswith("<!DOCTYPE html>")
    assert notjson.headers["content-type"] == "application/json"
    with pytest.raises(ValueError, match="Unterminated"):
        notjson.json()
    assert empty.content == b""
    assert nochoices.json()["object"] == "chat.completion"
    assert "choices" not in nochoices.json()
    # None of them counts as an answer, so none can be a duplicate when it is asked again.
    assert server.stats.distinct_bodies_answered == 0
    assert server.stats.answered == {200: 4}


async def test_hang_never_answers(start, raw, chat, until):
    server = await start(faults={"hang": 100})
    asking = asyncio.create_task(raw(server, json.dumps(chat()).encode()))
    await until(lambda: server.stats.in_flight == 1)
    asking.cancel()
    await until(lambda: server.stats.client_gone == 1 and server.stats.in_flight == 0)


async def test_hang_has_a_limit(start, raw, chat):
    server = await start(faults={"hang": 100}, hang_seconds=0.05)
    assert await raw(server, json.dumps(chat()).encode()) == b""


async def test_drip_comes_byte_by_byte_and_whole(start, http, chat):
    server = await start(drip_seconds=0.0001)
    server.set_script(["ok", "drip"])
    whole = await http.post(f"{server.url}/chat/completions", json=chat())
    async with http.stream("POST", f"{server.url}/chat/completions", json=chat()) as dripping:
        sizes = [len(chunk) async for chunk in dripping.aiter_raw()]
    assert sum(sizes) == len(whole.content)
    assert len(sizes) > len(whole.content) / 2
    assert server.stats.duplicates == 1


async def test_slow_is_ten_times_the_latency(start, http, chat, monkeypatch):
    monkeypatch.setattr(misbehaviour, "_SLOW_AT_LEAST_SECONDS", 0.0)
    server = await start(faults={"slow": 100}, latency_seconds=(0.02, 0.02))
    began = time.monotonic()
    answer = await http.post(f"{server.url}/chat/completions", json=chat())
    assert answer.status_code == 200
    assert time.monotonic() - began >= 0.2


async def test_refusals_do_not_wait_and_failures_do(start, http, chat):
    server = await start(latency_seconds=(1.0, 1.0))
    server.set_script(["429", "503"])
    took = []
    for _ in range(2):
        began = time.monotonic()
        await http.post(f"{server.url}/chat/completions", json=chat())
        took.append(time.monotonic() - began)
    assert took[0] < 1.0 <= took[1]
