"""Files: brought whole, refused with a sentence, listed, read in ranges, deleted. On both kinds of database."""

import asyncio
import gzip
import itertools
import socket
import time

import httpx
import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.store import tenants
from promptmill.tables import file_parts, files
from tests.api.forms import FORM, field, file_field, form, line, lines, part
from tests.api.server import Serving, new_client, serving
from tests.conftest import eventually

TOGETHER = {"User-Agent": "Together/Python 3.1.1"}
PURPOSE = {"purpose": "batch"}


async def bring(client: httpx.AsyncClient, content: bytes, name: str = "in.jsonl", headers=None, **fields):
    answer = await client.post(
        "/v1/files", data={**PURPOSE, **fields}, files={"file": (name, content)}, headers=headers or {}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def nothing_is_left(db: Database) -> bool:
    async with db.read() as connection:
        counts = [
            (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar()
            for table in (files, file_parts)
        ]
    return counts == [0, 0]


async def test_a_file_comes_and_goes(db: Database):
    content = b"\n \n" + line("a") + b"\n\n" + line("b").rstrip(b"\n")
    async with serving(db) as server:
        made = await bring(server.client, content)
        assert made.items() >= {
            "object": "file", "bytes": len(content), "filename": "in.jsonl", "purpose": "batch", "status": "processed",
            "FileType": "jsonl", "Processed": True,
        }.items()  # fmt: skip
        assert made["expires_at"] - made["created_at"] == 30 * 86_400
        assert "status_details" not in made
        path = f"/v1/files/{made['id']}"
        assert (await server.client.get(path)).json() == made
        read = await server.client.get(f"{path}/content")
        assert (read.content, read.headers["content-type"]) == (content, "application/jsonl")
        gone = await server.client.delete(path)
        assert gone.json() == {"id": made["id"], "object": "file", "deleted": True}
        for method, where in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
            assert (await server.client.request(method, where)).status_code == 404
    async with db.read() as connection:
        rows = (await connection.execute(sa.select(file_parts).order_by(file_parts.c.part))).all()
    assert [(row.part, row.line, row.custom_id, row.form) for row in rows] == [(0, 3, "a", None), (1, 6, "b", None)]
    assert b"".join(row.data for row in rows) == content


async def test_the_file_may_come_before_its_purpose(sqlite_db: Database):
    async with serving(sqlite_db) as server:

        async def chunked():
            whole = form(file_field(lines(3)), field("purpose", "batch"))
            for at in range(0, len(whole), 7):
                yield whole[at : at + 7]

        answer = await server.client.post("/v1/files", content=chunked(), headers=FORM)
        assert (answer.status_code, answer.json()["bytes"]) == (200, len(lines(3)))


async def test_a_kept_time(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        asked = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        made = await bring(server.client, lines(1), **asked)
        assert made["expires_at"] - made["created_at"] == 3600
        assert "expires_at" not in await bring(server.client, b"RIFF", "a.wav", purpose="user_data")
        for anchor, seconds in (("now", "3600"), ("created_at", "3599"), ("created_at", "-1"), ("created_at", "1e9"),
                                ("created_at", "9" * 5000), ("created_at", "2592001"), ("created_at", "")):  # fmt: skip
            fields = {**PURPOSE, "expires_after[anchor]": anchor, "expires_after[seconds]": seconds}
            answer = await server.client.post("/v1/files", data=fields, files={"file": ("a.jsonl", lines(1))})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_after")


async def test_the_kept_time_begins_when_the_file_was_made(sqlite_db: Database):
    readings = itertools.count(time.time(), 0.9)  # every look at the clock is in another second
    async with serving(sqlite_db, clock=lambda: next(readings)) as server:
        made = await bring(server.client, lines(1))
    assert made["expires_at"] - made["created_at"] == 30 * 86_400


async def test_wrong_lines_are_told_at_once(db: Database):
    content = line("a") + b"{broken\n" + line("a") + line("b", stream=True) + line("c")
    async with serving(db) as server:
        made = await bring(server.client, content)
        assert made["status"] == "error"
        details = made["status_details"]
        assert details.startswith("3 of 5 lines are wrong; line 2: not JSON at column 2")
        assert "line 3: custom_id 'a' was seen before, on line 1 [duplicate_custom_id]" in details
        assert (await server.client.get(f"/v1/files/{made['id']}/content")).content == content
        # What it is for may be said after it, and then it is no batch's business.
        late = form(file_field(content), field("purpose", "fine-tune"))
        answer = await server.client.post("/v1/files", content=late, headers=FORM)
        assert answer.json()["status"] == "processed"


@pytest.mark.parametrize(
    "content",
    [
        b'{"custom_id": "a", "body": {"prompt": "a cat", "steps": 4}}\n',
        b'{"custom_id": "a", "body": {"text": "?"}}\n',
        b'{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hi"}]}}\n',
        line("a", model=None),
    ],
)
async def test_what_only_a_batch_knows_is_no_fault_of_a_line(sqlite_db: Database, content: bytes):
    async with serving(sqlite_db) as server:
        made = await bring(server.client, content, purpose="batch-api")
        assert made["status"] == "processed", made
    async with sqlite_db.read() as connection:
        assert (await connection.execute(sa.select(file_parts.c.custom_id))).scalars().all() == ["a"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000 + b"\n",
        b'{"custom_id": "\\ud800", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
        b'{"custom_id": "a\\u0000b", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
        b"\xff\xfe\x00\n",
        b"\x00\n",
        b'{"custom_id": "a", "url": "/v1/\\u0000", "body": {}}\n',
    ],
)
async def test_hostile_lines_are_wrong_lines(db: Database, content: bytes):
    async with serving(db) as server:
        made = await bring(server.client, content)
        assert made["status"] == "error"
        assert (await server.client.get(f"/v1/files/{made['id']}/content")).content == content


REFUSED = {
    "no purpose": (form(file_field(lines(1))), "There is no purpose"),
    "wrong purpose": (form(field("purpose", "lunch"), file_field(lines(1))), "'lunch' is not known"),
    "wrong purpose, said late": (form(file_field(lines(1)), field("purpose", "lunch")), "'lunch' is not known"),
    "our own purpose": (form(field("purpose", "_call"), file_field(lines(1))), "is not known"),
    "no file": (form(field("purpose", "batch")), "There is no file"),
    "two files": (form(field("purpose", "batch"), file_field(lines(1)), file_field(b"x")), "more than one file"),
    "a text for a file": (form(field("file", "https://x")), "`file` must be a file"),
    "a file elsewhere": (form(file_field(b"x", name="data")), "must be in the field `file`"),
    "not lines": (form(field("purpose", "batch"), file_field(b"x", "a.txt")), "Must be .jsonl"),
    "not lines, said late": (form(file_field(b"x", "a.txt"), field("purpose", "batch")), "Must be .jsonl"),
    "empty": (form(field("purpose", "batch"), file_field(b"")), "The file is empty"),
    "blank": (form(field("purpose", "batch"), file_field(b"\n \r\n\n")), "The file is empty"),
    "NUL in the name": (form(field("purpose", "batch"), file_field(b"x", "a\0.jsonl")), "NUL"),
    "NUL in a field": (form(field("purpose", "ba\0tch"), file_field(b"x")), "NUL"),
    "no name": (form(field("purpose", "batch"), file_field(b"x", "")), "needs a name"),
    "a long name": (form(field("purpose", "batch"), file_field(b"x", "a" * 600 + ".jsonl")), "needs a name"),
    "not UTF-8": (form(field("purpose", b"\xff"), file_field(b"x")), "is not UTF-8"),
    "a long field": (form(field("purpose", "b" * 70_000), file_field(b"x")), "more than 65,536 bytes"),
    "many fields": (form(*(field(f"f{n}", "") for n in range(70)), file_field(b"x")), "more than 64 fields"),
    "nameless part": (form(part("form-data", "x")), "has no name"),
    "cut off": (form(field("purpose", "batch"), file_field(lines(2)))[:-20], "ends in the middle"),
    "cut off early": (form(field("purpose", "batch"))[:30], "ends in the middle"),
    "another boundary": (b"--other\r\n\r\n--other--\r\n", "cannot be read"),
    "nothing": (b"", "ends in the middle"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(sqlite_db: Database, case: str):
    body, sentence = REFUSED[case]
    async with serving(sqlite_db) as server:
        answer = await server.client.post("/v1/files", content=body, headers=FORM)
        assert answer.status_code == 400, answer.text
        assert sentence in answer.json()["error"]["message"]
        same = await server.client.post("/v1/files", content=body, headers={**FORM, **TOGETHER})
        assert sentence in same.json()["error"]
    assert await nothing_is_left(sqlite_db)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=" + "b" * 300, 400),
        ("multipart/form-data; boundary=", 400),
        ("application/json", 415),
        ("text/plain; boundary=x", 415),
    ],
)
async def test_other_bodies(sqlite_db: Database, content_type: str, status: int):
    async with serving(sqlite_db) as server:
        answer = await server.client.post("/v1/files", content=b"{}", headers={"Content-Type": content_type})
        assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)


async def test_a_line_that_is_too_long_refuses_the_file(db: Database):
    async with serving(db, max_upload_line_bytes=1000) as server:
        for content in (lines(5) + b"x" * 1001, lines(5) + b"x" * 1001 + b"\n" + lines(1)):
            body = form(field("purpose", "batch"), file_field(content))
            answer = await server.client.post("/v1/files", content=body, headers=FORM)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "line_too_large")
            assert "line 6: the line has more than 1,000 bytes" in error["message"]
            assert "max_upload_line_bytes" in error["message"]
    assert await nothing_is_left(db)


async def test_a_file_that_is_too_large(db: Database):
    async with serving(db, max_file_bytes=100_000) as server:
        content = lines(1000)

        async def chunked():
            yield form(field("purpose", "batch"), file_field(content))

        for body in (form(field("purpose", "batch"), file_field(content)), chunked()):
            answer = await server.client.post("/v1/files", content=body, headers=FORM)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert await nothing_is_left(db)


async def test_a_client_that_goes_away_leaves_nothing(db: Database):
    async with serving(db) as server:
        whole = form(field("purpose", "batch"), file_field(lines(50_000)))
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(whole)}\r\n"
            head += f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, head.encode() + whole[: len(whole) // 2])

            async def some_came() -> bool:
                return not await nothing_is_left(db)

            await eventually(some_came)
        await eventually(lambda: nothing_is_left(db))


async def test_content_in_ranges(db: Database):
    content = bytes(range(256)) * 12_000  # slices of 1 MiB, and one that is not whole
    text = lines(3000)
    async with serving(db) as server:
        client = server.client
        for data, name in ((content, "a.bin"), (text, "a.jsonl")):
            made = await bring(client, data, name, purpose="user_data")
            path = f"/v1/files/{made['id']}/content"
            whole = await client.get(path, headers={"Accept-Encoding": "identity"})
            assert (whole.content, whole.headers["content-length"]) == (data, str(len(data)))
            assert whole.headers["accept-ranges"] == "bytes"
            size = len(data)
            for asked, start, end in (
                ("bytes=0-0", 0, 1), ("bytes=5-99", 5, 100), (f"bytes={size // 2}-", size // 2, size),
                ("bytes=-7", size - 7, size), (f"bytes=-{size * 2}", 0, size), (f"bytes=9-{size * 2}", 9, size),
            ):  # fmt: skip
                some = await client.get(path, headers={"Range": asked})
                assert (some.status_code, some.content) == (206, data[start:end]), asked
                assert some.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
            for odd in ("bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=9-2", "bytes=x-"):
                assert (await client.get(path, headers={"Range": odd})).status_code == 200
            for beyond in (f"bytes={size}-", "bytes=99999999999999-", "bytes=-0"):
                none = await client.get(path, headers={"Range": beyond})
                assert (none.status_code, none.headers["content-range"]) == (416, f"bytes */{size}")


async def test_content_compressed(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        made = await bring(server.client, lines(2000))
        path = f"/v1/files/{made['id']}/content"

        async def raw(**headers: str) -> tuple[bytes, httpx.Headers]:
            async with server.client.stream("GET", path, headers=headers) as answer:
                return b"".join([chunk async for chunk in answer.aiter_raw()]), answer.headers

        packed, told = await raw(**{"Accept-Encoding": "gzip, deflate"})
        assert told["content-encoding"] == "gzip"
        assert gzip.decompress(packed) == lines(2000)
        assert len(packed) < len(lines(2000)) / 5
        for headers in (
            {"Accept-Encoding": "gzip;q=0"},
            {"Accept-Encoding": "br"},
            {"Accept-Encoding": "gzip", "User-Agent": "Together/v1 PythonBindings/1.5.35"},
        ):
            plain, told = await raw(**headers)
            assert (plain, told["content-length"]) == (lines(2000), str(len(plain)))


async def test_pages(db: Database):
    async with serving(db) as server:
        client = server.client
        ids = [(await bring(client, lines(1), f"{n}.jsonl"))["id"] for n in range(5)]
        other = (await bring(client, b"x", "x.txt", purpose="user_data"))["id"]
        page = (await client.get("/v1/files", params={"limit": 2})).json()
        assert [each["id"] for each in page["data"]] == [other, ids[4]]
        assert (page["first_id"], page["last_id"], page["has_more"]) == (other, ids[4], True)
        page = (await client.get("/v1/files", params={"limit": 4, "after": ids[4]})).json()
        assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[3::-1], False)
        page = (await client.get("/v1/files", params={"order": "asc", "purpose": "batch", "after": ids[1]})).json()
        assert [each["id"] for each in page["data"]] == ids[2:]
        everything = (await client.get("/v1/files", params={"limit": 1}, headers=TOGETHER)).json()
        assert ([each["id"] for each in everything["data"]], everything["has_more"]) == ([other, *ids[::-1]], False)
        assert {each["purpose"] for each in everything["data"]} == {"batch-api"}
        assert (await client.get("/v1/files", params={"purpose": "evals"})).json()["data"] == []
        for wrong, param in (
            ({"limit": 0}, "limit"), ({"limit": -1}, "limit"),
            ({"limit": 10_001}, "limit"), ({"limit": "9" * 5000}, "limit"), ({"limit": 1.5}, "limit"),
            ({"limit": "x"}, "limit"), ({"order": "up"}, "order"), ({"after": "file-nobody"}, "after"),
            ({"after": "\0"}, "after"), ({"after": ""}, "after"), ({"purpose": "\0"}, "purpose"),
        ):  # fmt: skip
            answer = await client.get("/v1/files", params=wrong)
            assert answer.status_code == 400, wrong
            assert param in answer.json()["error"]["param"]
        refused = await client.get("/v1/files", params={"after": "file-nobody"})
        assert "file-nobody" in refused.json()["error"]["message"]


@pytest.mark.parametrize("file_id", ["file-nobody", "%00", "x" * 5000, "%ED%A0%80", f"file-{'0' * 32}-7"])
async def test_ids_of_nothing(db: Database, file_id: str):
    async with serving(db) as server:
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/preprocess")):
            raw = f"/v1/files/{file_id}{path}".encode()
            url = httpx.URL(server.url).copy_with(raw_path=raw)
            answer = await server.client.request(method, url, headers=TOGETHER)
            assert answer.status_code == 404, (method, path)
            assert isinstance(answer.json()["error"], str)


async def test_a_tenant_sees_its_own(db: Database):
    async def keyed(server: Serving, name: str) -> httpx.AsyncClient:
        key = await tenants.create_key(db, tenant=name, name=name, is_admin=False, now=0)
        return new_client(base_url=server.url, headers={"Authorization": f"Bearer {key}"})

    async with serving(db) as server, await keyed(server, "one") as one, await keyed(server, "two") as two:
        theirs = (await bring(one, lines(1)))["id"]
        assert (await two.get("/v1/files")).json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/preprocess")):
            assert (await two.request(method, f"/v1/files/{theirs}{path}")).status_code == 404
        assert (await two.get("/v1/files", params={"after": theirs})).status_code == 400
        assert (await one.get(f"/v1/files/{theirs}")).status_code == 200
        body = form(field("purpose", "batch"), file_field(lines(1)))
        nobody = await server.client.post("/v1/files", content=body, headers={**FORM, **TOGETHER})
        assert nobody.status_code == 401
        assert isinstance(nobody.json()["error"], str)
