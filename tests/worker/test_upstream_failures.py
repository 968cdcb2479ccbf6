"""What an upstream does wrong, and what it is called then."""

import asyncio
import errno
import gzip
import socket
import ssl

import pytest

from promptmill.outcome import Failure, Reason
from tests.worker.raw_server import Peer, answering, http, saying, serve
from worker.transport.faults import connect_failed, connection_lost
from worker.transport.pool import Pool
from worker.transport.wire import Connection
from worker.upstream import Reply, Upstream, UpstreamSettings

GZIPPED = gzip.compress(b'{"text": "hello"}' * 1000)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"


async def call(url: str, body: bytes = b"{}", **settings) -> Reply | Failure:
    async with Upstream(UpstreamSettings(url=url, key="sk-secret", **settings)) as client:
        outcome = await client.send(client.request("/v1/chat/completions", body))
        assert client._pool._idle == [] or isinstance(outcome, Reply)
    return outcome


def assert_failure(outcome: Reply | Failure, reason: Reason, says: str) -> None:
    assert isinstance(outcome, Failure), outcome
    assert outcome.reason is reason, outcome
    assert says in outcome.message
    for secret in ("sk-secret", "/chat/completions", "marker-in-body"):
        assert secret not in outcome.message


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        (saying(b""), Reason.CONNECTION_RESET, "closed the connection before it answered"),
        (saying(b"", then="reset"), Reason.CONNECTION_RESET, "reset the connection before it answered"),
        (saying(b"HTTP/1.1 200"), Reason.CONNECTION_RESET, "closed the connection before it answered"),
        (saying(LENGTH), Reason.BODY_TRUNCATED, "closed the connection in the middle of its answer"),
        (saying(LENGTH, then="reset"), Reason.BODY_TRUNCATED, "in the middle of its answer"),
        (saying(CHUNKED), Reason.BODY_TRUNCATED, "closed the connection in the middle of its answer"),
        (saying(CHUNKED + b"zz\r\n"), Reason.PROTOCOL_ERROR, "does not answer in HTTP"),
        (saying(b"hello there\r\n\r\n"), Reason.PROTOCOL_ERROR, "does not answer in HTTP"),
        (saying(b"\x15\x03\x01\x00\x02\x02\x46"), Reason.PROTOCOL_ERROR, "does not answer in HTTP"),
        (saying(http("101 Switching Protocols", b"", "Upgrade: x", "Connection: upgrade")), Reason.PROTOCOL_ERROR, ""),
        (saying(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000), Reason.PROTOCOL_ERROR, "a head of more than"),
        (saying(http("200 OK", b"x", "Content-Encoding: br")), Reason.PROTOCOL_ERROR, "answered in br"),
        (saying(http("200 OK", b"not gzip", "Content-Encoding: gzip")), Reason.PROTOCOL_ERROR, "compression is broken"),
        (saying(http("200 OK", GZIPPED[:50], "Content-Encoding: gzip")), Reason.BODY_TRUNCATED, "compressed body"),
        (saying(http("200 OK", GZIPPED[:50], "Content-Encoding: gzip")[:-9]), Reason.BODY_TRUNCATED, "closed"),
    ],
)
async def test_broken_answers(script, reason, says):
    async with serve(script) as server:
        assert_failure(await call(server.url, b"marker-in-body"), reason, says)


async def slams(peer: Peer) -> None:
    peer.writer.close()


async def slams_hard(peer: Peer) -> None:
    peer.reset()


@pytest.mark.parametrize("script", [slams, slams_hard])
async def test_a_door_that_opens_and_shuts(script):
    async with serve(script) as server:
        for _ in range(20):
            assert_failure(await call(server.url), Reason.CONNECTION_RESET, "the connection before it answered")


async def test_a_connection_that_is_lost_before_it_is_used(monkeypatch):
    connect = Pool._connect

    async def dawdle(pool: Pool, address: str) -> Connection:
        connection = await connect(pool, address)
        await connection.wait_closed()
        return connection

    monkeypatch.setattr(Pool, "_connect", dawdle)
    async with serve(slams) as server:
        assert_failure(await call(server.url), Reason.CONNECTION_RESET, "closed the connection before it answered")


async def test_a_corrupt_compressed_body_is_told_from_a_short_one():
    corrupt = GZIPPED[:20] + bytes(byte ^ 0xFF for byte in GZIPPED[20:])
    async with serve(saying(http("200 OK", corrupt, "Content-Encoding: gzip"))) as server:
        assert_failure(await call(server.url), Reason.PROTOCOL_ERROR, "compression is broken")


@pytest.mark.parametrize(
    "response",
    [
        http("200 OK", b"x" * 2000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n",
        http("200 OK", gzip.compress(bytes(10_000_000)), "Content-Encoding: gzip"),
    ],
)
async def test_a_body_that_is_too_large(response):
    async with serve(saying(response, then="hang")) as server:
        assert_failure(await call(server.url, max_body_bytes=1000), Reason.BODY_TOO_LARGE, "more than 1,000 bytes")
        await asyncio.wait_for(server.left.wait(), 5)


async def test_a_body_of_just_the_limit_is_not_too_large():
    async with serve(answering(http("200 OK", gzip.compress(bytes(1000)), "Content-Encoding: gzip"))) as server:
        assert isinstance(await call(server.url, max_body_bytes=1000), Reply)


async def test_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        outcome = await call(f"http://127.0.0.1:{port}/v1")
    assert_failure(outcome, Reason.CONNECTION_REFUSED, f"could not connect to 127.0.0.1:{port}: connection refused")


async def test_no_such_host(monkeypatch):
    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    assert_failure(await call("http://api.example.invalid"), Reason.DNS_FAILED, "could not find api.example.invalid:80")


async def test_the_name_is_looked_up_once_for_calls_that_start_together(monkeypatch):
    lookups = 0
    loop = asyncio.get_running_loop()
    async with serve(answering(http("200 OK", b"{}"))) as server:

        async def getaddrinfo(_host: str, port: int, **_: object) -> list[object]:
            nonlocal lookups
            lookups += 1
            await asyncio.sleep(0)
            # The first address refuses: nobody listens there.
            addresses = ["127.0.0.9", "127.0.0.1"]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo, raising=False)
        url = f"http://api.example.invalid:{server.port}"
        async with Upstream(UpstreamSettings(url=url)) as client:
            requests = [client.request("/v1/x", b"{}") for _ in range(20)]
            cancelled = asyncio.create_task(client.send(requests[0]))
            sent = [asyncio.create_task(client.send(request)) for request in requests]
            await asyncio.sleep(0)
            cancelled.cancel()
            assert all(isinstance(reply, Reply) for reply in await asyncio.gather(*sent))
            assert client._pool._resolver._known[0] == "127.0.0.1"
    assert lookups == 1


# Time-outs, each told from the others.


async def test_no_connection_in_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = []
        try:
            for _ in range(3):  # fill the backlog, so that the next SYN is dropped
                other = socket.socket()
                other.setblocking(False)
                other.connect_ex(full.getsockname())
                others.append(other)
            outcome = await call(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_seconds=0.2)
        finally:
            for other in others:
                other.close()
    assert_failure(outcome, Reason.CONNECT_TIMEOUT, "within 0.2 s")


async def test_no_tls_handshake_in_time():
    async def silent(peer: Peer) -> None:
        await peer.until_closed()

    async with serve(silent) as server:
        outcome = await call(server.url.replace("http:", "https:"), connect_timeout_seconds=0.2)
        assert_failure(outcome, Reason.CONNECT_TIMEOUT, "within 0.2 s")
        await asyncio.wait_for(server.left.wait(), 5)


async def test_cancelling_aborts_a_connection_that_is_not_there_yet():
    async def silent(peer: Peer) -> None:
        peer.server.arrived.set()
        await peer.until_closed()

    async with serve(silent) as server:
        task = asyncio.create_task(call(server.url.replace("http:", "https:")))
        await asyncio.wait_for(server.arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.left.wait(), 5)


async def test_no_answer_in_time_is_only_a_matter_of_the_total():
    async with serve(saying(b"", then="hang")) as server:
        outcome = await call(server.url, total_timeout_seconds=0.3, between_bytes_timeout_seconds=0.05)
        assert_failure(outcome, Reason.TOTAL_TIMEOUT, "had not answered in full after 0.3 s")
        await asyncio.wait_for(server.left.wait(), 5)


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\n", LENGTH, CHUNKED])
async def test_a_pause_in_the_answer(beginning):
    async with serve(saying(beginning, then="hang")) as server:
        outcome = await call(server.url, between_bytes_timeout_seconds=0.1)
        assert_failure(outcome, Reason.BETWEEN_BYTES_TIMEOUT, "began to answer, then sent nothing for 0.1 s")
        await asyncio.wait_for(server.left.wait(), 5)


async def test_an_answer_that_drips_is_not_a_pause():
    async def drip(peer: Peer) -> None:
        await peer.read_request()
        for byte in http("200 OK", b"abcdefgh"):
            await peer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        await peer.until_closed()

    async with serve(drip) as server:
        assert isinstance(await call(server.url, between_bytes_timeout_seconds=0.3), Reply)


async def test_an_answer_that_drips_for_ever():
    async def drip(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            await peer.write(b"x")
            await asyncio.sleep(0.01)

    async with serve(drip) as server:
        outcome = await call(server.url, between_bytes_timeout_seconds=0.2, total_timeout_seconds=0.5)
    assert_failure(outcome, Reason.TOTAL_TIMEOUT, "after 0.5 s")


async def test_an_interim_answer_starts_no_clock():
    async def think(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.2)
        await peer.write(http("200 OK", b"{}"))
        await peer.until_closed()

    async with serve(think) as server:
        assert isinstance(await call(server.url, between_bytes_timeout_seconds=0.1), Reply)


async def test_an_upload_that_nobody_reads():
    async def deaf(peer: Peer) -> None:
        peer.stop_reading()
        await asyncio.Event().wait()

    async with serve(deaf) as server:
        outcome = await call(server.url, bytes(30_000_000), write_timeout_seconds=0.2)
    assert_failure(outcome, Reason.WRITE_TIMEOUT, "took no byte of the request for 0.2 s")


async def test_an_upload_that_is_read_slowly_is_not_a_stalled_one():
    async def slow(peer: Peer) -> None:
        await peer.read_head()
        for _ in range(6):
            await asyncio.sleep(0.15)
            await peer.reader.readexactly(5_000_000)
        await peer.write(http("200 OK", b"{}"))

    async with serve(slow) as server:
        assert isinstance(await call(server.url, bytes(30_000_000), write_timeout_seconds=0.5), Reply)


async def test_an_answer_before_the_upload_is_done():
    async def hasty(peer: Peer) -> None:
        await peer.read_head()
        await peer.write(http("413 Payload Too Large", b"too much"))
        await peer.until_closed()

    async with serve(hasty) as server:
        outcome = await call(server.url, bytes(30_000_000))
    assert isinstance(outcome, Reply)
    assert (outcome.status, outcome.body) == (413, b"too much")


# What a test cannot make the system say.


@pytest.mark.parametrize(
    ("error", "reason", "says"),
    [
        (OSError(errno.EMFILE, "Too many open files"), Reason.CONNECTION_FAILED, "ulimit -n"),
        (OSError(errno.ENETUNREACH, "x"), Reason.CONNECTION_FAILED, "network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "x"), Reason.CONNECTION_FAILED, "no route to host"),
        (TimeoutError(errno.ETIMEDOUT, "x"), Reason.CONNECT_TIMEOUT, "timed out"),
        (ConnectionResetError(errno.ECONNRESET, "x"), Reason.CONNECTION_RESET, "reset by peer"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), Reason.DNS_FAILED, "temporary"),
        (ssl.SSLError(1, "x"), Reason.TLS_FAILED, "no TLS connection"),
        (OSError("all at once"), Reason.CONNECTION_FAILED, "all at once"),
    ],
)
def test_why_there_is_no_connection(error, reason, says):
    failure = connect_failed(error, "api.example.com:443", tls=False)
    assert failure.reason is reason
    assert says in failure.message
    assert "api.example.com:443" in failure.message


@pytest.mark.parametrize(
    ("error", "sending", "answering", "reason", "says"),
    [
        (TimeoutError(errno.ETIMEDOUT, "x"), False, False, Reason.CONNECTION_RESET, "keep-alive probes"),
        (TimeoutError(errno.ETIMEDOUT, "x"), True, False, Reason.WRITE_TIMEOUT, "stopped acknowledging"),
        (BrokenPipeError(errno.EPIPE, "x"), True, False, Reason.CONNECTION_RESET, "while the request was sent"),
        (OSError(errno.EHOSTUNREACH, "x"), False, False, Reason.CONNECTION_FAILED, "no route to host"),
        (ssl.SSLError(1, "x"), False, True, Reason.CONNECTION_RESET, "broke in the middle of its answer"),
    ],
)
def test_why_a_connection_was_lost(error, sending, answering, reason, says):
    failure = connection_lost(error, "h:1", sending=sending, answering=answering)
    assert failure.reason is reason
    assert says in failure.message
