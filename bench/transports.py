"""Which HTTP client should carry the calls? Measures the candidates, and asks each what it does when things go wrong.

    python bench/transports.py [calls]

Prints two tables; docs/transport.md quotes them.
"""

import asyncio
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.transport_candidates import installed, make
from bench.transport_manners import manners

QUESTION = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % (b"q" * 400)
BODY = b'{"choices":[{"message":{"content":"%b"}}],"usage":{"total_tokens":9}}' % (b"a" * 380)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: r\r\nContent-Length: %d\r\n\r\n"
ANSWER = HEAD % len(BODY) + BODY


class Endpoint(asyncio.Protocol):
    """Answers whatever is complete, at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.pending = transport, b""

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while (end := self.pending.find(b"\r\n\r\n")) >= 0:
            head = self.pending[:end].lower()
            start = head.index(b"content-length:") + 15
            whole = end + 4 + int(head[start:].split(b"\r\n", 1)[0])
            if len(self.pending) < whole:
                return
            self.pending = self.pending[whole:]
            self.transport.write(ANSWER)  # type: ignore[attr-defined] # a stream's transport can write


async def endpoint() -> None:
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(name: str, url: str, at_once: int, calls: int) -> None:
    send = make(name, 60.0).send

    async def run(count: int) -> None:
        for _ in range(count):
            if await send(url, QUESTION) != BODY:
                raise SystemExit("that was not the answer")

    await asyncio.gather(*(run(1) for _ in range(at_once)))  # connect first
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(run(calls // at_once) for _ in range(at_once)))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{calls / elapsed:,.0f}/s | {cpu / calls * 1e6:,.0f} µs | {memory} MB", flush=True)
    os._exit(0)  # no candidate's way of closing 1,000 connections is under test


def throughput(names: list[str], calls: int) -> None:
    this = [sys.executable, __file__]
    print("\n| candidate | at once | calls | CPU a call | memory |\n|---|---|---|---|---|")
    with subprocess.Popen([*this, "--endpoint"], stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip() if server.stdout else ""
        url = f"http://127.0.0.1:{port}/v1"
        for name in names:
            for at_once in (100, 1000):
                some = calls if name != "httpx.AsyncClient" else max(1000, calls // 20)
                arguments = [*this, "--measure", name, url, str(at_once), str(some)]
                done = subprocess.run(arguments, capture_output=True, text=True, check=False)
                result = done.stdout.strip() or f"failed: {done.stderr.strip().splitlines()[-1][:100]} | | "
                print(f"| {name} | {at_once:,} | {result} |", flush=True)
        server.terminate()


def main() -> None:
    match sys.argv[1:]:
        case ["--endpoint"]:
            uvloop.run(endpoint())
        case ["--measure", name, url, at_once, calls]:
            uvloop.run(measure(name, url, int(at_once), int(calls)))
        case rest:
            throughput(installed(), int(rest[0]) if rest else 20_000)
            uvloop.run(manners(installed()))


if __name__ == "__main__":
    main()
