"""A client that costs little, so that what is measured is the server: plain sockets, HTTP/1.1, one request at a time
on each connection."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.measure import BenchError


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and how long it took."""

    status: int
    body: bytes
    seconds: float


class Connection:
    """One connection, kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, base_url: str) -> "Connection":
        """Connect."""
        parts = urlsplit(base_url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=4 * 1024 * 1024)
        return cls(reader, writer, parts.netloc)

    async def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> Answered:
        """Send, and take the whole answer."""
        started = time.perf_counter()
        self.begin(method, path, f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n{headers}")
        self._writer.write(body)
        status, fields = await self.head()
        content = b"".join([chunk async for chunk in self.chunks(fields)])
        return Answered(status, content, time.perf_counter() - started)

    def begin(self, method: str, path: str, headers: str) -> None:
        """Send the head."""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}\r\n".encode())

    async def send(self, chunks: Iterable[bytes]) -> None:
        """Send a body, no faster than it is taken."""
        for chunk in chunks:
            self._writer.write(chunk)
            await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        return int(head[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def chunks(self, fields: dict[str, str]) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if "chunked" in fields.get("transfer-encoding", ""):
            while size := int(await self._reader.readline(), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readline()
            return
        left = int(fields.get("content-length", "0"))
        while left:
            chunk = await self._reader.read(min(left, 1024 * 1024))
            if not chunk:
                raise BenchError("the answer was cut off")
            left -= len(chunk)
            yield chunk

    def close(self) -> None:
        """Be done."""
        self._writer.close()


async def crowd(base_url: str, path: str, clients: int, each: int, body: Callable[[int], bytes]) -> list[Answered]:
    """`clients` connections, each with `each` requests one after the other; `body` is told the request's number."""
    connections = [await Connection.open(base_url) for _ in range(clients)]

    async def one(index: int) -> list[Answered]:
        return [await connections[index].request("POST", path, body(index * each + n)) for n in range(each)]

    try:
        answers = await asyncio.gather(*(one(index) for index in range(clients)))
    finally:
        for connection in connections:
            connection.close()
    return [answer for theirs in answers for answer in theirs]
