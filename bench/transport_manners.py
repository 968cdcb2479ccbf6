"""What the candidates do when an endpoint misbehaves, a caller loses interest, or the environment names a proxy."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator

import trustme

from bench.transport_candidates import CallFailed, Candidate, make
from tests.worker.raw_server import Peer, Script, answering, http, saying, serve

PATIENCE = 2.0  # what has not shown after so many seconds is missing
SHORT = 0.3  # the time-outs under test
ANSWER = http("200 OK", b'{"choices":[{"text":"a"}]}', "Content-Type: application/json")


async def told(call: Awaitable[object]) -> str:
    """What the caller learns, and when."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            await call
    except TimeoutError as error:
        return f"{type(error).__name__}" if time.perf_counter() - started < PATIENCE - 0.1 else "**waits on**"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        what = str(error) if isinstance(error, CallFailed) else type(error).__name__
        return f"{what} after {time.perf_counter() - started:.1f} s"
    return "answered"


async def when_talking_to(candidate: Candidate, script: Script, body: bytes = b"{}") -> str:
    async with serve(script) as server:
        return await told(candidate.send(server.url, body))


async def thinks(peer: Peer) -> None:
    await peer.read_request()
    await asyncio.sleep(3 * SHORT)
    await peer.write(ANSWER)


async def deaf(peer: Peer) -> None:
    peer.stop_reading()
    await asyncio.Event().wait()


async def lets_go(candidate: Candidate) -> str:
    async with serve(saying(b"", then="hang")) as server:
        task = asyncio.ensure_future(candidate.send(server.url, b"{}"))
        await server.arrived.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.left.wait(), PATIENCE)
        return "yes" if server.left.is_set() else "**no, it stays open**"


async def streams(candidate: Candidate) -> str:
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        await heard.wait()
        await peer.write(b"0\r\n\r\n")

    async def read(url: str) -> None:
        async with candidate.stream(url) as chunks:
            async for _ in chunks:
                heard.set()

    async with serve(script) as server:
        await told(read(server.url))
    return "yes" if heard.is_set() else "**no, it waits for more**"


async def no_connection(candidate: Candidate) -> str:
    """A listener whose queue is full drops what knocks."""
    with socket.socket() as listener, contextlib.ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        return await told(candidate.send(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", b"{}"))


async def untrusted(candidate: Candidate) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with serve(answering(ANSWER), context) as server:
        return await told(candidate.send(server.url, b"{}"))


async def trusted(name: str) -> str:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tempfile.NamedTemporaryFile() as file, environment(SSL_CERT_FILE=file.name):
        file.write(authority.cert_pem.bytes())
        file.flush()
        async with serve(answering(ANSWER), context) as server:
            return await told(make(name, SHORT).send(server.url, b"{}"))


async def proxied(name: str) -> str:
    async with serve(answering(ANSWER)) as proxy:
        with environment(HTTP_PROXY=f"http://127.0.0.1:{proxy.port}"):
            said = await told(make(name, SHORT).send("http://api.example.invalid/v1", b"{}"))
    return "yes" if proxy.requests else f"**no**: {said}"


async def reuses(candidate: Candidate) -> str:
    async with serve(answering(ANSWER)) as server:
        for _ in range(50):
            await candidate.send(server.url, b"{}")
        return f"{server.connections} connections"


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    os.environ.update(variables)
    yield
    for name in variables:
        del os.environ[name]


async def manners(names: list[str]) -> None:
    """Print the second table."""
    logging.disable(logging.CRITICAL)  # some complain that they are not closed; that is not what is asked here
    rows: dict[str, Callable[[str, Candidate], Awaitable[str]]] = {
        "50 calls, one after the other": lambda _, it: reuses(it),
        "a cancelled call closes its connection": lambda name, _: lets_go(make(name, 60)),
        "a stream comes chunk by chunk": lambda name, _: streams(make(name, 60)),
        "thinks longer than the read time-out": lambda _, it: when_talking_to(it, thinks),
        "pauses within the body": lambda _, it: when_talking_to(it, saying(ANSWER[:-9], then="hang")),
        "reads nothing of a 30 MB request": lambda _, it: when_talking_to(it, deaf, bytes(30_000_000)),
        "lets nobody connect": lambda _, it: no_connection(it),
        "breaks off within the body": lambda _, it: when_talking_to(it, saying(ANSWER[:-9])),
        "an untrusted certificate": lambda _, it: untrusted(it),
        "one that SSL_CERT_FILE vouches for": lambda name, _: trusted(name),
        "goes through HTTP_PROXY": lambda name, _: proxied(name),
    }
    print("\n| |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for row, ask in rows.items():
        cells = [await ask(name, make(name, SHORT)) for name in names]
        print(f"| {row} |", " | ".join(cells), "|", flush=True)
