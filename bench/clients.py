"""The others: what does the same calls and keeps nothing. One of them per process, driven alike.

    python -m bench.clients NAME --base-url URL --in-flight N --warm-up N --jobs N

prints what it did as one line of JSON. Its CPU time is that of the calls alone, without start and imports.
"""

import argparse
import asyncio
import json
import re
import resource
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import uvloop

from bench.measure import KEY
from bench.prompts import MODEL, PATH, body, messages

#: No call of the bench takes longer; nobody should give up before.
_PATIENCE_SECONDS = 600.0

Call = Callable[[], Awaitable[bool]]
Caller = AbstractAsyncContextManager[Call]


@asynccontextmanager
async def httpx_client(base_url: str, in_flight: int) -> Any:
    """httpx.AsyncClient, with as many connections as calls (its default of 100 would queue them and time out)."""
    import httpx  # noqa: PLC0415 - each client has its process to itself

    url, content = base_url.removesuffix("/v1") + PATH, body()
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(limits=limits, timeout=_PATIENCE_SECONDS, headers=headers, trust_env=False) as client:

        async def call() -> bool:
            return (await client.post(url, content=content)).status_code == 200

        yield call


@asynccontextmanager
async def transport(base_url: str, _in_flight: int) -> Any:
    """What promptmill sends with."""
    from worker.upstream import Reply, Upstream, UpstreamSettings  # noqa: PLC0415 - as above

    content = body()
    async with Upstream(UpstreamSettings(url=base_url, key=KEY, proxy="")) as upstream:

        async def call() -> bool:
            reply = await upstream.send(upstream.request(PATH, content))
            return isinstance(reply, Reply) and reply.status == 200

        yield call


@asynccontextmanager
async def openai_sdk(base_url: str, _in_flight: int) -> Any:
    """openai.AsyncOpenAI as it comes (up to 1,000 connections)."""
    import openai  # noqa: PLC0415 - as above

    asked: Any = messages()
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=_PATIENCE_SECONDS) as client:

        async def call() -> bool:
            answer = await client.chat.completions.create(model=MODEL, messages=asked, max_tokens=200, temperature=0.7)
            return bool(answer.choices[0].message.content)

        yield call


class _RawCall(asyncio.Protocol):
    """As little as a call can be: fixed bytes out, a known number of bytes back."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._answer = b""
        self._length = 0
        self._received = 0
        self._done: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if not self._length:
            self._answer += data
            head, separator, _ = self._answer.partition(b"\r\n\r\n")
            found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            if separator and found:
                self._length = len(head) + len(separator) + int(found[1])
        if self._length and self._received >= self._length and self._done is not None:
            self._received = 0
            self._done.set_result(True)

    def send(self, request: bytes) -> "asyncio.Future[bool]":
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done


@asynccontextmanager
async def raw(base_url: str, in_flight: int) -> Any:
    """Bytes over bare connections, to see what the endpoint can do at least."""
    host, _, port = base_url.removesuffix("/v1").removeprefix("http://").partition(":")
    content = body()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    request = head.encode() + content
    loop = asyncio.get_running_loop()
    idle = [(await loop.create_connection(_RawCall, host, int(port)))[1] for _ in range(in_flight)]

    async def call() -> bool:
        connection = idle.pop()
        done = await connection.send(request)
        idle.append(connection)
        return done

    yield call


CLIENTS: dict[str, Callable[[str, int], Caller]] = {
    "httpx": httpx_client, "transport": transport, "openai": openai_sdk, "raw": raw,
}  # fmt: skip


async def drive(client: Caller, in_flight: int, warm_up: int, jobs: int) -> dict[str, float]:
    """`jobs` calls, `in_flight` at once: so many tasks take the next one from a common counter.

    `warm_up` calls go before and are not measured: opening its connections is what httpx is slowest at.
    """
    counter = iter(range(warm_up + jobs))
    ended = good = 0
    cpu = started = 0.0

    async with client as call:

        async def work() -> None:
            nonlocal ended, good, cpu, started
            for _ in counter:
                succeeded = await call()
                ended += 1
                good += succeeded
                if ended == warm_up:
                    cpu, started = _cpu_seconds(), time.perf_counter()

        await asyncio.gather(*(work() for _ in range(in_flight)))
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
    return {"jobs": jobs, "failed": ended - good, "seconds": seconds, "cpu_seconds": cpu}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.clients")
    parser.add_argument("name", choices=CLIENTS)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    given = parser.parse_args()
    client = CLIENTS[given.name](given.base_url, given.in_flight)
    print(json.dumps(uvloop.run(drive(client, given.in_flight, given.warm_up, given.jobs))))


if __name__ == "__main__":
    main()
