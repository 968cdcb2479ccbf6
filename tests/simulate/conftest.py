"""What the tests here share: real servers on free ports, clients that hide nothing, and waiting for conditions."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer

Start = Callable[..., Awaitable[SimulateServer]]
Raw = Callable[..., Awaitable[bytes]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers in this loop; all of them stop when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def start_server(**settings: Any) -> SimulateServer:
            return await stack.enter_async_context(SimulateServer(SimulateConfig(port=0, **settings)))

        yield start_server


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:  # noqa: S501 - plain http
        yield client


@pytest.fixture
def chat() -> Callable[..., dict[str, Any]]:
    """A chat body; keywords override or add."""

    def build(content: Any = "How far is the mill?", **others: Any) -> dict[str, Any]:
        return {"model": "test/plain", "messages": [{"role": "user", "content": content}]} | others

    return build


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    async def wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def raw() -> Raw:
    """Everything the server sends until it ends the connection. A reset raises ConnectionResetError."""

    async def exchange(server: SimulateServer, body: bytes, path: str = "/v1/chat/completions") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.origin.rpartition(":")[2]))
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    return exchange
