"""A server that does to the bytes what a script says: real ones misbehave below what a web framework can do."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast


@dataclass
class Received:
    """A request as it came over the wire."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Peer:
    """One connection, from the server's side."""

    server: "RawServer"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_head(self) -> Received:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        received = Received(line, headers, b"")
        self.server.requests.append(received)
        self.server.arrived.set()
        return received

    async def read_request(self) -> Received:
        received = await self.read_head()
        received.body = await self.reader.readexactly(int(received.headers.get("content-length", "0")))
        return received

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> None:
        """Until the client goes away."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.server.left.set()

    def stop_reading(self) -> None:
        """Take nothing more from the socket, not even into a buffer."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def reset(self) -> None:
        """RST instead of FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class RawServer:
    """Runs `script` on each connection, and keeps what came."""

    script: Script
    port: int = 0
    scheme: str = "http"
    connections: int = 0
    requests: list[Received] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[BaseException] = field(default_factory=list)
    _running: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self.script(Peer(self, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        except asyncio.CancelledError:
            pass  # the test is over
        except Exception as error:  # noqa: BLE001 - shown by the test that started this server
            self.errors.append(error)
        finally:
            self._running.discard(task)
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serve(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    server = RawServer(script, scheme="https" if tls else "http")
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(server._running):
            task.cancel()
        await asyncio.gather(*server._running, return_exceptions=True)
        assert not server.errors, server.errors


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    """A response with its length."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def answering(*responses: bytes) -> Script:
    """Each request gets the next of `responses`; the last one again and again."""
    counter = iter(range(10**9))

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_request()
            await peer.write(responses[min(next(counter), len(responses) - 1)])

    return script


def saying(data: bytes, *, then: str = "close") -> Script:
    """One request in, `data` out, and then: close, reset, or hang."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if data:
            await peer.write(data)
        if then == "reset":
            peer.reset()
        elif then == "hang":
            await peer.until_closed()

    return script
