"""Bytes that no client should send: the server stays, the next request is answered, and no half of a file is left."""

import asyncio
import contextlib

import pytest
import sqlalchemy as sa

from promptmill import tables
from promptmill.engine import Database
from tests.api.forms import FORM, field, file_field, form, lines
from tests.api.server import Serving, serving
from tests.conftest import eventually

WHOLE = form(field("purpose", "batch"), file_field(lines(2_000)))
HALF = WHOLE[: len(WHOLE) // 2]
CHUNKED = "Transfer-Encoding: chunked"


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join((line, "Host: 127.0.0.1", *headers, "", "")).encode("latin-1")


def upload(*headers: str) -> bytes:
    return head("POST /v1/files HTTP/1.1", f"Content-Type: {FORM['Content-Type']}", *headers)


def chunk(data: bytes, size: str | None = None) -> bytes:
    return f"{size or format(len(data), 'x')}\r\n".encode() + data + b"\r\n"


#: What is sent, and the statuses that may answer it; none where the server waits for the rest, which never comes.
CASES: dict[str, tuple[bytes, set[int]]] = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", {400}),
    "a line without an end": (b"G" * 100_000, {400}),
    "a method that is none": (head("FETCH? /v1/files HTTP/1.1"), {400}),
    "a version that is none": (head("GET /v1/files HTTP/9.9"), {400}),
    "no version": (b"GET /v1/files\r\n\r\n", {200, 400}),
    "a path that is none": (head("GET :// HTTP/1.1"), {400, 404}),
    "a path with a NUL": (head("GET /v1/files/\x00 HTTP/1.1"), {400}),
    "a path of bytes": (head("GET /v1/files/\xff\xfe HTTP/1.1"), {400, 404}),
    "a path on another host": (head("GET http://elsewhere/v1/files HTTP/1.1"), {200, 400, 404}),
    "a header without an end": (b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b", set()),
    "a header without a colon": (b"GET /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nnonsense\r\n\r\n", {400}),
    "a header with a NUL": (head("GET /v1/files HTTP/1.1", "X-A: a\x00b"), {400}),
    "headers without end": (head("GET /v1/files HTTP/1.1", *(f"X-{n}: {'x' * 1_000}" for n in range(100))), {400, 431}),
    "a length that is none": (upload("Content-Length: many") + WHOLE, {400}),
    "a negative length": (upload("Content-Length: -5") + WHOLE, {400}),
    "a huge length": (upload(f"Content-Length: {'9' * 400}") + WHOLE, {400, 413}),
    "two lengths": (upload("Content-Length: 5", f"Content-Length: {len(WHOLE)}") + WHOLE, {400}),
    "a length and chunks": (upload("Content-Length: 5", CHUNKED) + chunk(WHOLE) + b"0\r\n\r\n", {400}),
    "a length that is too short": (upload(f"Content-Length: {len(HALF)}") + WHOLE, {400}),
    "a length that is too long": (upload(f"Content-Length: {len(WHOLE) * 2}") + WHOLE, set()),
    "half of what was announced": (upload(f"Content-Length: {len(WHOLE)}") + HALF, set()),
    "no length": (upload() + WHOLE, {400}),
    "chunks that are none": (upload(CHUNKED) + b"zz\r\n" + WHOLE, {400}),
    "a chunk that is longer than it says": (upload(CHUNKED) + chunk(HALF, "10") + b"0\r\n\r\n", {400}),
    "a chunk of a huge size": (upload(CHUNKED) + chunk(HALF, "f" * 40), {400}),
    "a chunk, then garbage": (upload(CHUNKED) + chunk(HALF) + b"\xff" * 100, {400}),
    "chunks without an end": (upload(CHUNKED) + chunk(HALF), set()),
    "chunks that end early": (upload(CHUNKED) + chunk(HALF) + b"0\r\n\r\n", {400}),
    "an encoding that is none": (upload("Transfer-Encoding: lzma") + WHOLE, {400, 501}),
    "half a PUT": (head("PUT /v1/files/incoming/x HTTP/1.1", "Content-Length: 99999") + b"x", {404}),
    "an upgrade": (head("GET /v1/files HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket"), {200, 400, 426}),
}  # fmt: skip


@pytest.mark.parametrize("patient", [True, False], ids=["waits", "goes"])
async def test_the_server_stays_and_nothing_is_left(db: Database, patient: bool):
    async with serving(db) as server:
        for name, (data, statuses) in CASES.items():
            answer = await said(server, data, wait=patient and bool(statuses))
            if patient and statuses:
                assert answer.startswith(b"HTTP/1.1 "), (name, answer[:200])
                assert int(answer[9:12]) in statuses, (name, answer[:200])
            assert b"Traceback" not in answer, name
            assert (await server.client.get("/v1/jobs")).status_code == 200, name
        await eventually(lambda: nothing_is_left(db))


async def said(server: Serving, data: bytes, *, wait: bool) -> bytes:
    """Send this, and wait for what is answered, or go away without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        if not wait:
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            return b""
        async with asyncio.timeout(20):
            return await reader.read(65_536)
    finally:
        writer.transport.abort()


async def nothing_is_left(db: Database) -> bool:
    async with db.read() as connection:
        counts = [
            (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
            for table in (tables.files, tables.file_parts, tables.uploads)
        ]
    return counts == [0, 0, 0]
