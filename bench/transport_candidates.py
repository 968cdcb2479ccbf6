"""The HTTP clients that could carry the calls, each behind the same two questions: the whole answer, or a stream of it.

All get the same time-outs, as far as they have them. Candidates that are not installed are left out: httpx-aiohttp,
pyreqwest and pyqwest are no dependencies of promptmill.
"""

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import httpx

from promptmill.outcome import Failure
from worker.upstream import Upstream, UpstreamSettings

HEADERS = {"authorization": "Bearer k", "content-type": "application/json", "user-agent": "bench"}

Stream = Callable[[str], contextlib.AbstractAsyncContextManager[AsyncIterator[object]]]


class CallFailed(Exception):  # noqa: N818 - carries a Failure out of a candidate, as the others raise
    pass


@dataclass
class Candidate:
    send: Callable[[str, bytes], Awaitable[bytes]]
    stream: Stream


def ours(patience: float) -> Candidate:
    known: dict[str, Upstream] = {}

    def client(url: str) -> Upstream:
        if url not in known:
            known[url] = Upstream(
                UpstreamSettings(
                    url,
                    key="k",
                    connect_timeout_seconds=patience,
                    write_timeout_seconds=patience,
                    between_bytes_timeout_seconds=patience,
                )
            )
        return known[url]

    async def send(url: str, body: bytes) -> bytes:
        upstream = client(url)
        reply = await upstream.send(upstream.request("/v1/x", body))
        if isinstance(reply, Failure):
            raise CallFailed(reply.reason)
        return reply.body

    @contextlib.asynccontextmanager
    async def stream(url: str) -> AsyncIterator[AsyncIterator[object]]:
        async with client(url).stream(client(url).request("/v1/x", b"{}")) as reply:
            if isinstance(reply, Failure):
                raise CallFailed(reply.reason)
            yield reply.chunks

    return Candidate(send, stream)


def of_transport(transport: httpx.AsyncBaseTransport, patience: float) -> Candidate:
    """An httpx transport, called directly with a request."""
    timeout = {"connect": patience, "read": patience, "write": patience, "pool": None}

    async def response(url: str, body: bytes) -> httpx.Response:
        request = httpx.Request("POST", f"{url}/x", content=body, headers=HEADERS, extensions={"timeout": timeout})
        return await transport.handle_async_request(request)

    async def send(url: str, body: bytes) -> bytes:
        return await (await response(url, body)).aread()

    @contextlib.asynccontextmanager
    async def stream(url: str) -> AsyncIterator[AsyncIterator[object]]:
        answer = await response(url, b"{}")
        yield answer.aiter_raw()
        await answer.aclose()

    return Candidate(send, stream)


def aiohttp(patience: float) -> Candidate:
    import httpx_aiohttp  # noqa: PLC0415 - may be missing

    limits = httpx.Limits(max_connections=0, keepalive_expiry=4)  # 0 is aiohttp's "no limit"
    return of_transport(httpx_aiohttp.AiohttpTransport(limits=limits), patience)


def pyreqwest(patience: float) -> Candidate:
    from pyreqwest.client import ClientBuilder  # noqa: PLC0415 - may be missing
    from pyreqwest.compatibility.httpx import HttpxTransport  # noqa: PLC0415

    every = timedelta(seconds=patience)
    builder = ClientBuilder().follow_redirects(enable=False).connect_timeout(every).read_timeout(every)
    return of_transport(HttpxTransport(builder.build()), 0)


def pyqwest(patience: float) -> Candidate:
    from pyqwest import HTTPTransport, HTTPVersion  # noqa: PLC0415 - may be missing
    from pyqwest.httpx import AsyncPyqwestTransport  # noqa: PLC0415

    transport = HTTPTransport(
        http_version=HTTPVersion.HTTP1,
        follow_redirects=False,
        connect_timeout=patience,
        read_timeout=patience,
        enable_otel=False,
        tls_include_system_certs=True,
        pool_max_idle_per_host=100_000,
    )
    return of_transport(AsyncPyqwestTransport(transport), patience)


def httpx_client(patience: float) -> Candidate:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(patience, pool=None), headers=HEADERS)

    async def send(url: str, body: bytes) -> bytes:
        return (await client.post(f"{url}/x", content=body)).content

    @contextlib.asynccontextmanager
    async def stream(url: str) -> AsyncIterator[AsyncIterator[object]]:
        async with client.stream("POST", f"{url}/x", content=b"{}") as response:
            yield response.aiter_raw()

    return Candidate(send, stream)


CANDIDATES: dict[str, tuple[Callable[[float], Candidate], str]] = {
    "worker/transport": (ours, "httptools"),
    "pyreqwest HttpxTransport": (pyreqwest, "pyreqwest"),
    "httpx_aiohttp AiohttpTransport": (aiohttp, "httpx_aiohttp"),
    "pyqwest AsyncPyqwestTransport": (pyqwest, "pyqwest"),
    "httpx.AsyncClient": (httpx_client, "httpx"),
}


def installed() -> list[str]:
    """The names of the candidates that can be asked here."""
    return [name for name, (_, module) in CANDIDATES.items() if importlib.util.find_spec(module)]


def make(name: str, patience: float) -> Candidate:
    """A candidate of which every time-out it knows is `patience` seconds."""
    return CANDIDATES[name][0](patience)
