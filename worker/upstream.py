"""Speaks HTTP to an upstream and knows nothing of jobs: a request goes out, a `Reply` or a `Failure` comes back.

Requests and headers are httpx's. What is below is our own (worker/transport/): httpx's client costs two milliseconds a
call here, and the faster transports either cannot let go of a call that is still thinking or cost three times as much
(docs/transport.md has the figures). The key is in the request's headers and nowhere else: not in a message, not in a
log, and it never goes to another origin.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self

import httpx

from promptmill.errors import SettingsError
from promptmill.outcome import Failure, Reason
from worker.transport.call import Call, CallLimits, Event
from worker.transport.headers import headers_of
from worker.transport.pool import Pool
from worker.transport.route import join, route_to
from worker.transport.wire import Connection

REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: These mean "the same request again, over there"; the others would turn a POST into a GET.
REPEATABLE_REDIRECTS = frozenset({307, 308})
MAX_REDIRECTS = 3
FIRST_REFUSAL = 400
_UNLIMITED = contextlib.nullcontext()


@dataclass(frozen=True)
class UpstreamSettings:
    """Where an upstream is and how patient to be with it."""

    #: The base URL, with or without /v1.
    url: str
    #: Sent as a bearer token; "" sends none, as local servers want it.
    key: str = field(default="", repr=False)
    #: Name lookup, TCP, proxy and TLS together.
    connect_timeout_seconds: float = 10.0
    #: How long the upstream may take no byte of a request that is not sent in full.
    write_timeout_seconds: float = 60.0
    #: How long it may pause once its answer has begun. Before that it is thinking, which only the total limits.
    between_bytes_timeout_seconds: float = 300.0
    #: From the start of the call to the last byte. A shorter one sends long thoughts again and again.
    total_timeout_seconds: float = 2 * 3600.0
    #: A base64 video fits; an endless answer does not.
    max_body_bytes: int = 256 * 1024 * 1024
    #: PEM certificates to trust instead of the system's (which SSL_CERT_FILE and SSL_CERT_DIR can name, too).
    ca_file: str | None = None
    #: An http:// proxy; None reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; "" uses none.
    proxy: str | None = field(default=None, repr=False)
    #: Calls at once at most (a call that waits for its turn has not begun); None leaves that to the lanes.
    max_connections: int | None = None
    #: Sent with every request; they win over ours (an "api-key" instead of Authorization, say).
    extra_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP answer, whatever its status."""

    status: int
    headers: httpx.Headers
    body: bytes
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """An answer whose body is still coming. `chunks` ends with a `Failure` if it does not end well."""

    status: int
    headers: httpx.Headers
    chunks: AsyncIterator[bytes | Failure]


class Upstream:
    """A client for one upstream, for one event loop."""

    def __init__(self, settings: UpstreamSettings) -> None:
        try:
            self._base = httpx.URL(settings.url)
        except httpx.InvalidURL as error:
            raise SettingsError(f"the upstream's URL is not one: {error}") from error
        self._route = route_to(self._base, ca_file=settings.ca_file, proxy=settings.proxy)
        self._limits = CallLimits(
            write_seconds=settings.write_timeout_seconds,
            between_bytes_seconds=settings.between_bytes_timeout_seconds,
            total_seconds=settings.total_timeout_seconds,
            max_body_bytes=settings.max_body_bytes,
        )
        self._pool = Pool(
            self._route,
            connect_seconds=settings.connect_timeout_seconds,
            write_seconds=settings.write_timeout_seconds,
        )
        self._slots = asyncio.Semaphore(settings.max_connections) if settings.max_connections else _UNLIMITED
        self._key = settings.key.strip().encode()
        self._headers = headers_of(self._route, settings.key, settings.extra_headers)
        self._urls: dict[str, httpx.URL] = {}
        # To a proxy that forwards plain HTTP, the target is the whole URL and the proxy's user is named each time.
        proxy = self._route.proxy if self._route.tls is None else None
        self._target_prefix = f"http://{self._route.authority}".encode("ascii") if proxy else b""
        authorization = proxy.authorization if proxy else b""
        self._head_end = b"Proxy-Authorization: %b\r\n\r\n" % authorization if authorization else b"\r\n"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; calls under way end as `STOPPED`."""
        await self._pool.aclose()

    def request(self, path: str, body: bytes, content_type: str = "application/json") -> httpx.Request:
        """A POST to one of the API's paths ("/v1/chat/completions"), wherever the base URL says that the API begins."""
        if not content_type.isprintable():
            raise ValueError("a content type must not have control characters")
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = join(self._base, path)
        headers = [
            *self._headers,
            (b"Content-Type", content_type.encode("latin-1")),
            (b"Content-Length", b"%d" % len(body)),
        ]
        # With `stream` httpx takes headers and body as they are; with `content` it takes six times as long.
        return httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(body))

    async def send(self, request: httpx.Request) -> Reply | Failure:
        """The whole answer, or why there is none. Raises nothing but CancelledError, which aborts the call."""
        async with self._slots:
            started = asyncio.get_running_loop().time()
            exchange = await self._exchange(request, started, Event.END)
            if isinstance(exchange, Failure):
                return exchange
            call, connection = exchange
            self._pool.release(connection)
        body = self._without_key(call.status, call.take_all())
        elapsed = asyncio.get_running_loop().time() - started
        return Reply(call.status, httpx.Headers(call.headers), body, elapsed)

    @contextlib.asynccontextmanager
    async def stream(self, request: httpx.Request) -> AsyncIterator[StreamedReply | Failure]:
        """The head at once and the body as it comes; leaving early aborts the call."""
        async with self._slots:
            started = asyncio.get_running_loop().time()
            exchange = await self._exchange(request, started, Event.HEAD, streamed=True)
            if isinstance(exchange, Failure):
                yield exchange
                return
            call, connection = exchange
            try:
                yield StreamedReply(call.status, httpx.Headers(call.headers), connection.chunks(call))
            finally:
                self._pool.release(connection)

    async def whole(self, reply: StreamedReply) -> Reply | Failure:
        """The rest of a streamed answer, as `send` would have brought it."""
        started = asyncio.get_running_loop().time()
        body = bytearray()
        async for chunk in reply.chunks:
            if isinstance(chunk, Failure):
                return chunk
            body += chunk
        elapsed = asyncio.get_running_loop().time() - started
        return Reply(reply.status, reply.headers, self._without_key(reply.status, bytes(body)), elapsed)

    def _without_key(self, status: int, body: bytes) -> bytes:
        """Some upstreams repeat a wrong key, and refusals are kept."""
        if status >= FIRST_REFUSAL and self._key and self._key in body:
            return body.replace(self._key, b"[key]")
        return body

    async def _exchange(
        self, request: httpx.Request, started: float, event: Event, *, streamed: bool = False
    ) -> tuple[Call, Connection] | Failure:
        """Send, following redirects within the origin, and wait for `event`."""
        stream = request.stream
        body = b"".join(stream) if isinstance(stream, httpx.SyncByteStream) else await request.aread()
        target = request.url.raw_path
        deadline = started + self._limits.total_seconds
        for _ in range(MAX_REDIRECTS + 1):
            connection = self._pool.reuse() or await self._pool.open(deadline)
            if isinstance(connection, Failure):
                return connection
            now = asyncio.get_running_loop().time()
            call = Call(self._route.peer, self._limits, deadline, now, streamed)
            connection.send(call, self._head(request, target), body)
            await connection.wait(call, event)
            if call.failure is not None:
                return call.failure
            if call.status not in REDIRECTS:
                return call, connection
            self._pool.release(connection)
            elsewhere = self._redirected(request.url, call)
            if isinstance(elsewhere, Failure):
                return elsewhere
            target = elsewhere
        return Failure(Reason.REDIRECTED, f"{self._route.peer} redirects in a circle; check the base URL")

    def _head(self, request: httpx.Request, target: bytes) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in request.headers.raw]
        start = b"%b %b%b HTTP/1.1\r\n" % (request.method.encode("ascii"), self._target_prefix, target)
        return b"".join([start, *lines, self._head_end])

    def _redirected(self, url: httpx.URL, call: Call) -> bytes | Failure:
        """The new target, if it is of the same origin and wants the same request."""
        peer, status = self._route.peer, call.status
        location = call.header(b"location").decode("latin-1")
        try:
            there = url.join(location)
        except httpx.InvalidURL:
            location = ""
        if not location:
            return Failure(Reason.REDIRECTED, f"{peer} answered {status}, a redirect to nowhere", status)
        if not self._route.leads_to(there):
            origin = f"{there.scheme}://{there.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
            message = f"{peer} redirects to {origin}, where the key does not go; check the base URL"
        elif status in REPEATABLE_REDIRECTS:
            return there.raw_path
        else:
            message = f"{peer} answered {status}, a redirect to {there.path}; check the base URL"
        return Failure(Reason.REDIRECTED, message, status)
