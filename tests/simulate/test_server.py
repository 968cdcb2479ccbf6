"""Starting and stopping: in a test's loop, and as a process that is gone within a second."""

import asyncio
import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer

ROOT = pathlib.Path(__file__).parents[2]


def address(url):
    return "127.0.0.1", int(url.removesuffix("/v1").rpartition(":")[2])


async def test_stopping_ends_held_calls(chat, until, http):
    server = SimulateServer(SimulateConfig(port=0, latency_seconds=(60, 60)))
    await server.start()
    calls = [
        asyncio.create_task(http.post(f"{server.url}/chat/completions", json=chat(str(number)))) for number in range(50)
    ]
    await until(lambda: server.stats.in_flight == 50)
    began = time.monotonic()
    await server.stop()
    assert time.monotonic() - began < 10  # the calls are held for longer
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, httpx.TransportError) for error in ended)
    assert server.stats.in_flight == 0
    await server.stop()  # once more does no harm


async def test_a_port_that_is_taken(start):
    first = await start()
    with pytest.raises(OSError, match="in use"):
        await SimulateServer(SimulateConfig(port=address(first.url)[1])).start()


async def test_ipv6(start, http, chat):
    try:
        server = await start(host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    assert server.url.startswith("http://[::1]:")
    assert (await http.post(f"{server.url}/chat/completions", json=chat())).status_code == 200


async def test_connections_are_kept_and_pipelines_answered_in_order(start, chat):
    server = await start()
    reader, writer = await asyncio.open_connection(*address(server.url))
    for number in range(3):
        writer.write(request_bytes(chat(number=number)))
    ids = []
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        ids.append(json.loads(await reader.readexactly(length))["id"])
    writer.close()
    await writer.wait_closed()
    assert len(set(ids)) == 3


async def test_an_answer_arrives_in_one_piece(start, chat):
    server = await start()
    loop = asyncio.get_running_loop()
    with socket.create_connection(address(server.url)) as connection:
        connection.setblocking(False)
        await loop.sock_sendall(connection, request_bytes(chat()))
        piece = await loop.sock_recv(connection, 1 << 16)
    assert json.loads(piece.partition(b"\r\n\r\n")[2])["object"] == "chat.completion"


@contextlib.contextmanager
def process(*flags):
    """The simulator as a subprocess, which runs on uvloop, and the base URL that it prints."""
    command = [sys.executable, "-m", "cli.simulate", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        try:
            line = running.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            assert line.endswith("/v1\n")
            yield running, line.removeprefix("listening on ").strip()
        finally:
            running.kill()


def request_bytes(body):
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_stops_when_told_even_with_calls_held(number, chat):
    with process("--fault", "hang=100") as (running, url), socket.create_connection(address(url)) as held:
        held.sendall(request_bytes(chat()))
        stats_url = url.removesuffix("v1") + "simulate/stats"
        while httpx.get(stats_url, trust_env=False).json()["in_flight"] < 1:
            pass
        began = time.monotonic()
        running.send_signal(number)
        rest, errors = running.communicate(timeout=10)
        assert time.monotonic() - began < 9
        assert (running.returncode, rest, errors) == (0, "", "")


def test_connections_break_for_real_in_the_process_too(chat):
    with process() as (_, url):
        script_url = url.removesuffix("v1") + "simulate/script"
        httpx.post(script_url, json=["reset", "close", "truncated"], trust_env=False)
        seen = []
        for _ in range(3):
            with socket.create_connection(address(url), timeout=10) as connection:
                connection.sendall(request_bytes(chat()))
                try:
                    seen.append(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
                except ConnectionResetError as error:
                    seen.append(error)
    reset, closed, truncated = seen
    assert isinstance(reset, ConnectionResetError)
    assert closed == b""
    head, _, body = truncated.partition(b"\r\n\r\n")
    assert 0 < len(body) < int(head.partition(b"content-length: ")[2].split()[0])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--fault", "boom=1"], "unknown fault"),
        (["--latency", "x"], "latency"),
        (["--rpm", "0"], "requests_per_minute"),
    ],
)
def test_the_process_refuses_what_cannot_be(flags, says):
    command = [sys.executable, "-m", "cli.simulate", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert says in done.stderr
