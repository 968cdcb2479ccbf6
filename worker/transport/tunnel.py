"""CONNECT: asks a proxy for a tunnel, and steps aside once it is there."""

import asyncio
from typing import cast

#: A proxy's answer to CONNECT is a few lines; more than this is something else.
MAX_ANSWER_BYTES = 64 * 1024


class TunnelRefusedError(Exception):
    """The proxy answered something other than 200; the message is its status line."""


class Tunnel(asyncio.Protocol):
    """The first protocol of a tunnelled connection: one request without a body, one head in return."""

    def __init__(self) -> None:
        self._answer = b""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, authority: str, authorization: bytes) -> None:
        """Ask for `authority` (host:port). Raises TunnelRefusedError, or ConnectionResetError."""
        lines = [b"CONNECT %b HTTP/1.1" % authority.encode("ascii"), b"Host: " + authority.encode("ascii")]
        if authorization:
            lines.append(b"Proxy-Authorization: " + authorization)
        self._transport.write(b"\r\n".join([*lines, b"", b""]))
        await self._ready

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._ready.done():
            return
        self._answer += data
        head, end, _ = self._answer.partition(b"\r\n\r\n")
        if not end and len(head) < MAX_ANSWER_BYTES:
            return
        status_line = head.split(b"\r\n", 1)[0].decode("latin-1")
        version, _, status = status_line.partition(" ")
        if end and version.startswith("HTTP/1.") and status.startswith("2"):
            self._ready.set_result(None)
        else:
            self._ready.set_exception(TunnelRefusedError(status[:100] if status else "it does not answer in HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ready.done():
            self._ready.set_exception(exc or ConnectionResetError("closed before it answered"))
