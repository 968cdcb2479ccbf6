"""An endpoint that is never the bottleneck: raw asyncio protocol, one fixed answer, at once or after a wait.

With a rate it is strict in both ways that upstreams are: a log of the last 60 s, and a bucket that holds one second's
worth, for each key. Whatever is beyond gets a 429 with Retry-After. `GET /stats` tells what it saw.

    python -m bench.endpoint [--latency S] [--rpm N [--burst N]]

prints the port it listens on, and ends when its standard input does: so it cannot outlive the bench.
"""

import argparse
import asyncio
import json
import math
import re
import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import cast

import uvloop

from bench.prompts import ANSWER

WINDOW_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nauthorization: *([^\r]*)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


def http(status: str, body: bytes, more: str = "") -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


_OK = http("200 OK", ANSWER)
_REFUSAL = json.dumps({"error": {"message": "Rate limit reached", "type": "rate_limit", "code": "429"}}).encode()


@dataclass(slots=True)
class StrictLimit:
    """What one key may do: `rpm` calls in any 60 s, and no more than `burst` faster than the rate."""

    rpm: int
    burst: float
    log: deque[float] = field(default_factory=deque)
    level: float = 0.0
    filled_at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def wait_seconds(self, now: float) -> float:
        """0 lets a call in and counts it; otherwise how long it should have waited (and it is not counted)."""
        per_second = self.rpm / WINDOW_SECONDS
        self.level = min(self.burst, self.level + (now - self.filled_at) * per_second)
        self.filled_at = now
        while self.log and now - self.log[0] >= WINDOW_SECONDS:
            self.log.popleft()
        if len(self.log) >= self.rpm:
            return self.log[0] + WINDOW_SECONDS - now
        if self.level < 1.0:
            return (1.0 - self.level) / per_second
        self.level -= 1.0
        self.log.append(now)
        return 0.0


@dataclass(slots=True)
class Endpoint:
    """What all connections share."""

    latency: float
    rpm: int | None
    burst: float
    accepted: int = 0
    refused: int = 0
    first: float | None = None
    last: float = 0.0
    limits: "defaultdict[bytes, StrictLimit]" = field(init=False)

    def __post_init__(self) -> None:
        self.limits = defaultdict(lambda: StrictLimit(self.rpm or 0, self.burst))

    def stats(self) -> bytes:
        """What was seen so far."""
        span = self.last - self.first if self.first is not None else 0.0
        return http(
            "200 OK", json.dumps({"accepted": self.accepted, "refused": self.refused, "span_seconds": span}).encode()
        )

    def answer(self, head: bytes, now: float) -> tuple[float, bytes]:
        """(seconds to wait, answer)."""
        if head.startswith(b"GET /stats"):
            return 0.0, self.stats()
        if self.rpm is not None:
            found = _KEY.search(head)
            wait = self.limits[found[1] if found else b""].wait_seconds(now)
            if wait > 0:
                self.refused += 1
                return 0.0, http("429 Too Many Requests", _REFUSAL, f"Retry-After: {math.ceil(wait)}\r\n")
        self.accepted += 1
        if self.first is None:
            self.first = now
        self.last = now
        return self.latency, _OK


class Connection(asyncio.Protocol):
    """One client's connection; one request at a time, as clients do."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while self._buffer:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            head = self._buffer[:end]
            length = _LENGTH.search(head)
            total = end + len(_HEAD_END) + (int(length[1]) if length else 0)
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            wait, answer = self._endpoint.answer(head, self._loop.time())
            if wait:
                self._loop.call_later(wait, self._write, answer)
            else:
                self._transport.write(answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def serve(endpoint: Endpoint) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)
    server = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    await over.wait()
    server.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.endpoint")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from a request to its answer")
    parser.add_argument("--rpm", type=int, help="calls per minute and key")
    parser.add_argument("--burst", type=float, help="calls at once (default: one second's worth)")
    given = parser.parse_args()
    burst = given.burst if given.burst is not None else (given.rpm or 0) / WINDOW_SECONDS
    uvloop.run(serve(Endpoint(given.latency, given.rpm, max(1.0, burst))))


if __name__ == "__main__":
    main()
