"""TLS and proxies: whom the client trusts, and whom it goes through."""

import asyncio
import base64
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from promptmill.outcome import Failure, Reason
from tests.worker.raw_server import Peer, RawServer, answering, http, saying, serve
from worker.upstream import Reply, Upstream, UpstreamSettings

OK = http("200 OK", b'{"ok":true}')
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def tls(authority):
    return server_side(authority.issue_cert("127.0.0.1", "api.example.invalid"))


async def call(url: str, body: bytes = b"{}", **settings) -> Reply | Failure:
    async with Upstream(UpstreamSettings(url=url, key="sk-secret", **settings)) as client:
        return await client.send(client.request("/v1/x", body))


def assert_failure(outcome: Reply | Failure, reason: Reason, says: str) -> None:
    assert isinstance(outcome, Failure), outcome
    assert outcome.reason is reason, outcome
    assert says in outcome.message
    assert "sk-secret" not in outcome.message


# TLS.


async def test_a_certificate_that_the_ca_file_vouches_for(tls, ca_file):
    async with serve(answering(OK), tls) as server:
        async with Upstream(UpstreamSettings(url=server.url, key="k", ca_file=ca_file)) as client:
            for _ in range(3):
                assert isinstance(await client.send(client.request("/v1/x", bytes(1_000_000))), Reply)
        assert server.connections == 1
        assert [len(sent.body) for sent in server.requests] == [1_000_000] * 3


async def test_ssl_cert_file_is_honoured(tls, ca_file, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    async with serve(answering(OK), tls) as server:
        assert isinstance(await call(server.url), Reply)


async def test_a_certificate_that_nobody_vouches_for(tls):
    async with serve(answering(OK), tls) as server:
        outcome = await call(server.url)
        assert_failure(outcome, Reason.TLS_FAILED, "not trusted: unable to get local issuer certificate")
    assert server.requests == []


async def test_a_self_signed_certificate(authority, ca_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(authority, ca_file))
    async with serve(answering(OK), context) as server:
        assert_failure(await call(server.url), Reason.TLS_FAILED, "self-signed certificate")


async def test_a_certificate_of_another_host(authority, ca_file):
    context = server_side(authority.issue_cert("other.example.invalid"))
    async with serve(answering(OK), context) as server:
        outcome = await call(server.url, ca_file=ca_file)
    assert_failure(outcome, Reason.TLS_FAILED, "IP address mismatch, certificate is not valid for '127.0.0.1'")


async def test_an_expired_certificate(authority, ca_file):
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    context = server_side(authority.issue_cert("127.0.0.1", not_before=past, not_after=past))
    async with serve(answering(OK), context) as server:
        assert_failure(await call(server.url, ca_file=ca_file), Reason.TLS_FAILED, "certificate has expired")


async def test_a_server_that_does_not_speak_tls():
    async def plain(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.write(http("400 Bad Request"))

    async with serve(plain) as server:
        outcome = await call(server.url.replace("http:", "https:"))
    assert_failure(outcome, Reason.TLS_FAILED, "should the base URL be http://?")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_handshake_that_is_cut_short_may_be_tried_again(how):
    async def cut(peer: Peer) -> None:
        await peer.reader.read(10)
        if how == "reset":
            peer.reset()

    async with serve(cut) as server:
        outcome = await call(server.url.replace("http:", "https:"))
    assert_failure(outcome, Reason.CONNECTION_RESET, "during the TLS handshake")


async def test_a_tls_connection_that_breaks(tls, ca_file):
    async with serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), tls) as server:
        assert_failure(await call(server.url, ca_file=ca_file), Reason.BODY_TRUNCATED, "in the middle of its answer")


async def test_an_upload_over_tls_that_nobody_reads(tls, ca_file):
    async def deaf(peer: Peer) -> None:
        peer.stop_reading()
        await asyncio.Event().wait()

    async with serve(deaf, tls) as server:
        outcome = await call(server.url, bytes(30_000_000), ca_file=ca_file, write_timeout_seconds=0.3)
    assert_failure(outcome, Reason.WRITE_TIMEOUT, "took no byte")


async def test_cancelling_aborts_a_call_over_tls(tls, ca_file):
    async with (
        serve(saying(b"", then="hang"), tls) as server,
        Upstream(UpstreamSettings(url=server.url, ca_file=ca_file)) as client,
    ):
        task = asyncio.create_task(client.send(client.request("/v1/x", b"{}")))
        await asyncio.wait_for(server.arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.left.wait(), 5)


def _self_signed(authority, ca_file: str) -> str:
    """A file with a certificate that signs itself, and its key."""
    path = ca_file.replace("ca.pem", "self.pem")
    authority.private_key_pem.write_to_path(path)
    authority.cert_pem.write_to_path(path, append=True)
    return path


# Proxies.


@asynccontextmanager
async def proxying(target: RawServer | None = None) -> AsyncIterator[RawServer]:
    """A proxy that knows both ways, forwarding and CONNECT, and leads to `target` whatever it is asked for."""

    async def script(peer: Peer) -> None:
        assert target is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        received = await peer.read_request() if target.scheme == "http" else await peer.read_head()
        if received.line.startswith("CONNECT"):
            await peer.write(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
        else:
            method, url, version = received.line.split()
            path = url.split("/", 3)[3]
            head = f"{method} /{path} {version}\r\nContent-Length: {len(received.body)}\r\n\r\n"
            writer.write(head.encode() + received.body)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()

        try:
            await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer))
        finally:
            writer.close()

    async with serve(script) as proxy:
        yield proxy


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_plain_http_is_forwarded_by_the_proxy(monkeypatch, variable):
    async with serve(answering(OK)) as server, proxying(server) as proxy:
        monkeypatch.setenv(variable, f"http://us%40er:pw@127.0.0.1:{proxy.port}")
        assert isinstance(await call("http://api.example.invalid/v1"), Reply)
    (seen,) = proxy.requests
    assert seen.line == "POST http://api.example.invalid/v1/x HTTP/1.1"
    assert seen.headers["host"] == "api.example.invalid"
    assert base64.b64decode(seen.headers["proxy-authorization"].removeprefix("Basic ")) == b"us@er:pw"
    assert server.requests[0].line == "POST /v1/x HTTP/1.1"


async def test_https_goes_through_a_tunnel(monkeypatch, tls, ca_file):
    async with serve(answering(OK), tls) as server, proxying(server) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pw@127.0.0.1:{proxy.port}")
        settings = UpstreamSettings(url="https://api.example.invalid/v1", key="k", ca_file=ca_file)
        async with Upstream(settings) as client:
            for _ in range(2):
                assert isinstance(await client.send(client.request("/v1/x", bytes(500_000))), Reply)
    (seen,) = proxy.requests
    assert seen.line == "CONNECT api.example.invalid:443 HTTP/1.1"
    assert seen.headers["proxy-authorization"].startswith("Basic ")
    assert "authorization" not in seen.headers
    assert len(server.requests) == 2
    assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "example.com,127.0.0.1"])
async def test_no_proxy_exempts_a_host(monkeypatch, exempt):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", exempt)
    async with serve(answering(OK)) as server:
        assert isinstance(await call(server.url), Reply)


async def test_the_setting_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    async with serve(answering(OK)) as server, proxying(server) as proxy:
        assert isinstance(await call(server.url, proxy=f"127.0.0.1:{proxy.port}"), Reply)
        assert len(proxy.requests) == 1
        assert isinstance(await call(server.url, proxy=""), Reply)
        assert len(proxy.requests) == 1


async def test_a_proxy_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://user:hunter2@127.0.0.1:9")
    outcome = await call("http://api.example.invalid")
    assert_failure(outcome, Reason.CONNECTION_REFUSED, "could not connect to the proxy 127.0.0.1:9")
    assert "hunter2" not in str(outcome)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (http("407 Proxy Authentication Required"), "407 Proxy Authentication Required"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "it does not answer in HTTP"),
        (b"x" * 70_000, "it does not answer in HTTP"),
    ],
)
async def test_a_proxy_that_opens_no_tunnel(monkeypatch, answer, says):
    async with serve(saying(answer, then="hang")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        outcome = await call("https://api.example.invalid")
        assert_failure(outcome, Reason.CONNECTION_FAILED, f"opens no tunnel to api.example.invalid:443: {says}")
        await asyncio.wait_for(proxy.left.wait(), 5)


async def test_a_proxy_that_hangs_up(monkeypatch):
    async with serve(saying(b"")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert_failure(await call("https://api.example.invalid"), Reason.CONNECTION_RESET, "")


async def test_a_tunnel_to_somebody_who_is_not_trusted(monkeypatch, tls):
    async with serve(answering(OK), tls) as server, proxying(server) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        outcome = await call("https://api.example.invalid")
        assert_failure(outcome, Reason.TLS_FAILED, "the certificate of api.example.invalid:443 is not trusted")
    assert server.requests == []


def test_a_machine_without_certificates_gets_those_that_httpx_would_use(monkeypatch):
    monkeypatch.setattr(ssl, "create_default_context", lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    monkeypatch.setattr("worker.transport.route._has_certificate_directory", lambda: False)
    context = Upstream(UpstreamSettings(url="https://api.example.invalid"))._route.tls
    assert context is not None
    assert context.cert_store_stats()["x509_ca"] > 50
