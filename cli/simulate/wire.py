"""One request's connection, as ASGI shows it and, where it shows too little, as the transport is.

A plain ASGI server can neither cut an answer short nor reset a connection. Under our own protocol class
(protocol.py) the transport is in the scope, and both are done for real; under another server the request just ends
unanswered, which is the nearest thing it has.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

TRANSPORT = "promptmill.transport"

#: SO_LINGER with no time to linger: closing drops what is unsent and sends RST.
_NO_LINGER = struct.pack("ii", 1, 0)


class ClientGone(Exception):  # noqa: N818 - a fact about the client, not a fault
    """The client went away before its answer was sent."""


class Wire:
    __slots__ = ("_receive", "_send", "_transport")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._transport: asyncio.Transport | None = (scope.get("extensions") or {}).get(TRANSPORT)

    async def read_body(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if not message.get("more_body"):
            return bytes(message.get("body", b""))
        chunks = [message.get("body", b"")]
        while message.get("more_body"):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunks.append(message.get("body", b""))
        return b"".join(chunks)

    async def hold(self, seconds: float) -> None:
        """Sleep, but notice when nobody waits any more."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._disconnected()
        except TimeoutError:
            return
        raise ClientGone

    async def start(self, status: int, headers: RawHeaders) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def write_each(self, chunks: Sequence[bytes], pause_seconds: float) -> None:
        """Chunk by chunk, with a pause before each."""
        for left, chunk in zip(range(len(chunks) - 1, -1, -1), chunks, strict=True):
            await self.hold(pause_seconds)
            await self.write(chunk, more=left > 0)

    async def close(self) -> None:
        """Send what is written, then end the connection in good manners (FIN)."""
        if self._transport is not None:
            self._transport.close()
            await self._disconnected()

    async def reset(self) -> None:
        """End the connection in none (RST)."""
        if self._transport is not None:
            connection = self._transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
            await self._disconnected()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
