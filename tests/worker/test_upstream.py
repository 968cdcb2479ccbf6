"""What an upstream is sent and what comes back when it behaves."""

import asyncio
import gzip
import json
import os
import socket
import sys
import threading
import zlib
from pathlib import Path

import httpx
import pytest

from promptmill.errors import SettingsError
from promptmill.outcome import Failure, Reason
from tests.worker.raw_server import Peer, answering, http, serve
from worker.upstream import Reply, Upstream, UpstreamSettings, join

OK = http("200 OK", b'{"ok":true}', "Content-Type: application/json")


def upstream(url: str, **settings) -> Upstream:
    return Upstream(UpstreamSettings(url=url, key="sk-secret", **settings))


async def test_a_request_goes_out_as_it_was_given():
    async with serve(answering(OK)) as server, upstream(server.url) as client:
        reply = await client.send(client.request("/v1/chat/completions", b'{"a": 1}'))
    (sent,) = server.requests
    assert sent.line == "POST /v1/chat/completions HTTP/1.1"
    assert sent.body == b'{"a": 1}'
    assert sent.headers["authorization"] == "Bearer sk-secret"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["host"] == f"127.0.0.1:{server.port}"
    assert sent.headers["user-agent"].startswith("promptmill")
    assert "transfer-encoding" not in sent.headers
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, b'{"ok":true}')
    assert reply.headers["content-type"] == "application/json"
    assert 0 <= reply.elapsed_seconds < 5


async def test_the_request_is_an_httpx_request():
    request = upstream("http://localhost").request("/v1/embeddings", b"{}", "multipart/form-data; boundary=x")
    assert isinstance(request, httpx.Request)
    assert request.method == "POST"
    assert str(request.url) == "http://localhost/v1/embeddings"
    assert request.headers["content-type"] == "multipart/form-data; boundary=x"
    assert request.headers["content-length"] == "2"
    assert request.read() == b"{}"
    assert "sk-secret" not in repr(request.headers)


async def test_any_httpx_request_can_be_sent():
    async def body():
        yield b"in "
        yield b"pieces"

    async with serve(answering(OK)) as server, upstream(server.url) as client:
        for content in ("whole", body()):
            request = httpx.Request("POST", f"{server.url}/x?y=1", content=content, headers={"content-length": "9"})
            if content == "whole":
                request = httpx.Request("POST", f"{server.url}/x?y=1", content=content)
            assert isinstance(await client.send(request), Reply)
        assert isinstance(await client.send(httpx.Request("GET", f"{server.url}/models")), Reply)
    assert [sent.body for sent in server.requests] == [b"whole", b"in pieces", b""]
    assert server.requests[0].line == "POST /v1/x?y=1 HTTP/1.1"
    assert server.requests[2].line == "GET /v1/models HTTP/1.1"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://api.together.xyz/v1", "https://api.together.xyz/v1/chat/completions"),
        ("https://api.together.xyz/v1/", "https://api.together.xyz/v1/chat/completions"),
        ("https://api.together.xyz", "https://api.together.xyz/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("https://host/openai/v1", "https://host/openai/v1/chat/completions"),
        ("https://host/openai", "https://host/openai/v1/chat/completions"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai/chat/completions"),
        ("https://host/api/paas/v4", "https://host/api/paas/v4/chat/completions"),
        ("https://host/vllm", "https://host/vllm/v1/chat/completions"),
        ("https://host/openai/v1?api-version=preview", "https://host/openai/v1/chat/completions?api-version=preview"),
    ],
)
def test_the_url_says_v1_exactly_once(base, expected):
    assert str(join(httpx.URL(base), "/v1/chat/completions")) == expected


async def test_a_large_body_goes_out_whole_and_with_its_length():
    body = os.urandom(3_000_000)
    async with serve(answering(OK)) as server, upstream(server.url) as client:
        assert isinstance(await client.send(client.request("/v1/x", body)), Reply)
        assert isinstance(await client.send(client.request("/v1/x", body[:300_000])), Reply)
    assert [sent.body for sent in server.requests] == [body, body[:300_000]]
    assert server.requests[0].headers["content-length"] == "3000000"
    assert "transfer-encoding" not in server.requests[0].headers
    assert server.connections == 1


async def test_connections_are_reused():
    async with serve(answering(OK)) as server, upstream(server.url) as client:
        for _ in range(5):
            await client.send(client.request("/v1/x", b"{}"))
        assert server.connections == 1
        await asyncio.gather(*(client.send(client.request("/v1/x", b"{}")) for _ in range(10)))
        assert server.connections == 10
        await asyncio.gather(*(client.send(client.request("/v1/x", b"{}")) for _ in range(10)))
        assert server.connections == 10


async def test_max_connections_is_a_limit():
    async with serve(answering(OK)) as server, upstream(server.url, max_connections=3) as client:
        replies = await asyncio.gather(*(client.send(client.request("/v1/x", b"{}")) for _ in range(20)))
    assert all(isinstance(reply, Reply) for reply in replies)
    assert server.connections == 3


async def test_an_idle_connection_that_the_server_closed_is_not_used_again():
    async def once(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(OK)

    async with serve(once) as server, upstream(server.url) as client:
        for _ in range(5):
            assert isinstance(await client.send(client.request("/v1/x", b"{}")), Reply)
            await until(lambda: all(connection.closed for connection in client._pool._idle))
    assert server.connections == 5


async def test_what_comes_on_an_idle_connection_is_nobody_s_answer():
    async def late(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(OK)
        await peer.write(http("408 Request Timeout"))
        await peer.until_closed()

    async with serve(late) as server, upstream(server.url) as client:
        for _ in range(3):
            reply = await client.send(client.request("/v1/x", b"{}"))
            assert isinstance(reply, Reply)
            assert reply.status == 200
            await until(lambda: all(connection.closed for connection in client._pool._idle))
    assert server.connections == 3


async def test_a_second_answer_in_the_same_breath_is_nobody_s_either():
    async with serve(answering(OK + http("200 OK", b"not yours"))) as server, upstream(server.url) as client:
        for _ in range(3):
            reply = await client.send(client.request("/v1/x", b"{}"))
            assert isinstance(reply, Reply)
            assert reply.body == b'{"ok":true}'
    assert server.connections == 3


async def test_connection_close_is_honoured():
    async with serve(answering(http("200 OK", b"{}", "Connection: close"))) as server, upstream(server.url) as client:
        for _ in range(3):
            assert isinstance(await client.send(client.request("/v1/x", b"{}")), Reply)
    assert server.connections == 3


async def test_idle_connections_are_closed_before_the_server_would(monkeypatch):
    monkeypatch.setattr("worker.transport.pool.IDLE_SECONDS", 0.05)
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(OK)
        await peer.until_closed()
        left.set()

    async with serve(script) as server, upstream(server.url) as client:
        await client.send(client.request("/v1/x", b"{}"))
        await asyncio.wait_for(left.wait(), 5)
        assert client._pool._open == set()
    assert server.connections == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate", "bare deflate", "identity"])
async def test_a_compressed_answer_is_decoded_once(coding):
    plain = json.dumps({"text": "hello " * 5000}).encode()
    bare = zlib.compressobj(wbits=-15)
    encoded = {
        "gzip": gzip.compress(plain),
        "deflate": zlib.compress(plain),
        "bare deflate": bare.compress(plain) + bare.flush(),
        "identity": plain,
    }[coding]
    response = http("200 OK", encoded, f"Content-Encoding: {coding.removeprefix('bare ')}")
    async with serve(answering(response)) as server, upstream(server.url) as client:
        for _ in range(2):
            reply = await client.send(client.request("/v1/x", b"{}"))
            assert isinstance(reply, Reply)
            assert reply.body == plain
    assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"
    assert server.connections == 1


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nabcde\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    ],
)
async def test_framings(response):
    async with serve(answering(response)) as server, upstream(server.url) as client:
        for _ in range(2):
            reply = await client.send(client.request("/v1/x", b"{}"))
            assert isinstance(reply, Reply)
            assert (reply.status, reply.body) == (200, b"abcde")
            assert "link" not in reply.headers
    assert server.connections == 1


async def test_a_body_without_length_ends_with_the_connection():
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.0 200 OK\r\n\r\nabc")
        await peer.write(b"de")

    async with serve(script) as server, upstream(server.url) as client:
        reply = await client.send(client.request("/v1/x", b"{}"))
    assert isinstance(reply, Reply)
    assert reply.body == b"abcde"


async def test_an_answer_without_a_body():
    async with (
        serve(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as server,
        upstream(server.url) as client,
    ):
        for _ in range(2):
            reply = await client.send(client.request("/v1/x", b""))
            assert isinstance(reply, Reply)
            assert (reply.status, reply.body) == (204, b"")
    assert server.connections == 1
    assert server.requests[0].headers["content-length"] == "0"


async def test_an_answer_in_single_bytes():
    async def script(peer: Peer) -> None:
        await peer.read_request()
        for byte in OK:
            await peer.write(bytes([byte]))
            await asyncio.sleep(0)
        await peer.until_closed()

    async with serve(script) as server, upstream(server.url) as client:
        reply = await client.send(client.request("/v1/x", b"{}"))
    assert isinstance(reply, Reply)
    assert reply.body == b'{"ok":true}'


async def test_a_redirect_within_the_origin_sends_the_body_again():
    responses = [
        http("307 Temporary Redirect", b"moved", "Location: /v2/x?y=1"),
        http("308 Permanent Redirect", b"", "Location: ../v3/x"),
        OK,
    ]
    async with serve(answering(*responses)) as server, upstream(server.url) as client:
        reply = await client.send(client.request("/v1/x", b'{"a":1}'))
    assert isinstance(reply, Reply)
    assert reply.status == 200
    assert [sent.line.split()[1] for sent in server.requests] == ["/v1/x", "/v2/x?y=1", "/v3/x"]
    assert [sent.body for sent in server.requests] == [b'{"a":1}'] * 3
    assert server.connections == 1


async def test_a_redirect_elsewhere_is_not_followed_and_the_key_stays():
    async with serve(answering(OK)) as other:
        location = f"Location: http://127.0.0.1:{other.port}/v1/x?token=t"
        async with (
            serve(answering(http("307 Temporary Redirect", b"", location))) as server,
            upstream(server.url) as client,
        ):
            failure = await client.send(client.request("/v1/x", b"{}"))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.REDIRECTED
    assert failure.status == 307
    assert f"http://127.0.0.1:{other.port}" in failure.message
    assert "token" not in failure.message
    assert other.requests == []


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (http("302 Found", b"", "Location: /login?next=1"), "a redirect to /login"),
        (http("307 Temporary Redirect", b"", "Location: /v1/x"), "in a circle"),
        (http("307 Temporary Redirect"), "to nowhere"),
        (http("307 Temporary Redirect", b"", "Location: http://[::bad/"), "to nowhere"),
        (http("308 Permanent Redirect", b"", "Location: https://user:pw@127.0.0.1/"), "https://127.0.0.1,"),
    ],
)
async def test_redirects_that_lead_nowhere(response, says):
    async with serve(answering(response)) as server, upstream(server.url) as client:
        failure = await client.send(client.request("/v1/x", b"{}"))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.REDIRECTED
    assert says in failure.message
    assert len(server.requests) <= 4


async def test_a_stream_is_relayed_as_it_comes():
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await peer.write(b"8\r\ndata: x\n\r\n")
            await heard.wait()
            heard.clear()
        await peer.write(b"0\r\n\r\n")
        await peer.until_closed()

    async with serve(script) as server, upstream(server.url) as client:
        async with client.stream(client.request("/v1/x", b"{}")) as streamed:
            assert not isinstance(streamed, Failure)
            assert (streamed.status, streamed.headers["content-type"]) == (200, "text/event-stream")
            chunks = []
            async for chunk in streamed.chunks:
                chunks.append(chunk)
                heard.set()
        assert chunks == [b"data: x\n"] * 3
        assert len(client._pool._idle) == 1


async def test_a_stream_that_breaks_ends_with_a_failure():
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")

    async with (
        serve(script) as server,
        upstream(server.url) as client,
        client.stream(client.request("/v1/x", b"{}")) as streamed,
    ):
        assert not isinstance(streamed, Failure)
        *chunks, failure = [chunk async for chunk in streamed.chunks]
    assert chunks == [b"abc"]
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.BODY_TRUNCATED


async def test_leaving_a_stream_early_closes_its_connection():
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await peer.until_closed()

    async with serve(script) as server, upstream(server.url) as client:
        async with client.stream(client.request("/v1/x", b"{}")) as streamed:
            assert not isinstance(streamed, Failure)
            async for _ in streamed.chunks:
                break
        await asyncio.wait_for(server.left.wait(), 5)


async def test_a_slow_reader_slows_the_upstream_down_and_is_not_timed_out():
    size = 20_000_000
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        await peer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        while sent < size:
            await peer.write(bytes(1_000_000))
            sent += 1_000_000
        await peer.until_closed()

    async with serve(script) as server, upstream(server.url, between_bytes_timeout_seconds=0.1) as client:
        async with client.stream(client.request("/v1/x", b"{}")) as streamed:
            assert not isinstance(streamed, Failure)
            await asyncio.sleep(0.3)  # three times what the upstream may take: it is not the upstream that is late
            assert sent < size
            assert sum([len(chunk) async for chunk in streamed.chunks]) == size
        assert len(client._pool._idle) == 1


async def test_a_stream_can_fail_before_it_begins():
    async with upstream("http://127.0.0.1:9") as client, client.stream(client.request("/v1/x", b"{}")) as streamed:
        assert isinstance(streamed, Failure)


async def test_cancelling_aborts_the_call():
    async def think(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_closed()

    async with serve(think) as server, upstream(server.url) as client:
        task = asyncio.create_task(client.send(client.request("/v1/x", b"{}")))
        await asyncio.wait_for(server.arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.left.wait(), 5)
        assert client._pool._idle == []


async def test_closing_ends_calls_as_stopped():
    async def think(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_closed()

    async with serve(think) as server:
        client = upstream(server.url)
        task = asyncio.create_task(client.send(client.request("/v1/x", b"{}")))
        await asyncio.wait_for(server.arrived.wait(), 5)
        await client.aclose()
        failure = await task
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.STOPPED


@pytest.mark.skipif(sys.platform != "linux", reason="the options' names are Linux's")
async def test_a_peer_that_is_gone_is_noticed_by_the_system():
    async with serve(answering(OK)) as server, upstream(server.url, write_timeout_seconds=7) as client:
        await client.send(client.request("/v1/x", b"{}"))
        sock = client._pool._idle[0].socket()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


def test_a_client_opens_nothing_before_its_first_call():
    before = open_files(), threading.active_count()
    upstream("https://api.example.com/v1")
    assert (open_files(), threading.active_count()) == before


def open_files() -> set[str]:
    directory = Path("/proc/self/fd")
    return {entry.name for entry in directory.iterdir()} if directory.exists() else set()


@pytest.mark.parametrize("key", ["", "sk-secret\n", " sk-secret "])
async def test_the_key_is_trimmed_and_may_be_missing(key):
    async with serve(answering(OK)) as server, Upstream(UpstreamSettings(url=server.url, key=key)) as client:
        await client.send(client.request("/v1/x", b"{}"))
    assert server.requests[0].headers.get("authorization") == ("Bearer sk-secret" if key else None)


async def test_a_refusal_that_repeats_the_key_does_not_pass_it_on():
    async with (
        serve(answering(http("401 Unauthorized", b"wrong key: sk-secret!"))) as server,
        upstream(server.url) as client,
    ):
        reply = await client.send(client.request("/v1/x", b"{}"))
    assert isinstance(reply, Reply)
    assert reply.body == b"wrong key: [key]!"


async def test_extra_headers_win():
    extra = {"api-key": "k", "authorization": "Basic x", "User-Agent": "me"}
    async with serve(answering(OK)) as server, upstream(server.url, extra_headers=extra) as client:
        await client.send(client.request("/v1/x", b"{}"))
    sent = server.requests[0].headers
    assert (sent["api-key"], sent["authorization"], sent["user-agent"]) == ("k", "Basic x", "me")


@pytest.mark.parametrize(
    "settings",
    [
        UpstreamSettings(url="api.example.com/v1"),
        UpstreamSettings(url="ftp://host/v1"),
        UpstreamSettings(url="https://"),
        UpstreamSettings(url="https://user:hunter2@host:port/v1"),
        UpstreamSettings(url="https://user:hunter2@host/v1"),
        UpstreamSettings(url="https://host/v1", key="hunter2\r\nX: y"),
        UpstreamSettings(url="https://host/v1", key="“hunter2”"),
        UpstreamSettings(url="https://host/v1", extra_headers={"X-Y": "hunter2\n\nz"}),
        UpstreamSettings(url="https://host/v1", extra_headers={"X Y": "hunter2"}),
        UpstreamSettings(url="https://host/v1", extra_headers={"Content-Length": "7"}),
        UpstreamSettings(url="https://host/v1", ca_file="/no/such/file"),
        UpstreamSettings(url="https://host/v1", proxy="socks5://user:hunter2@host:1"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_showing_secrets(settings):
    with pytest.raises(SettingsError) as caught:
        Upstream(settings)
    assert "hunter2" not in str(caught.value)


def test_the_settings_do_not_show_secrets():
    shown = repr(UpstreamSettings(url="https://h", key="hunter2", proxy="hunter2", extra_headers={"a": "hunter2"}))
    assert "hunter2" not in shown


def test_a_content_type_is_one_line():
    with pytest.raises(ValueError, match="control characters"):
        upstream("http://localhost").request("/v1/x", b"", "a/b\r\nX: y")


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for: it is about what the loop did
            await asyncio.sleep(0.001)
