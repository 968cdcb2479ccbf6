"""Together's ways to bring a file: in steps, to an address of its own, and in numbered parts."""

import hashlib
import json
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa
from together import AsyncTogether

from promptmill.engine import Database
from promptmill.store import purge, tenants, uploads
from promptmill.tables import batches, file_parts, files
from promptmill.tables import uploads as uploads_table
from tests.api.forms import FORM, field, file_field, form, lines
from tests.api.server import Serving, new_client, serving

UA = {"User-Agent": "Together/Python 3.1.1"}
FIELDS = {"purpose": "batch-api", "file_name": "in.jsonl", "file_type": "jsonl"}
FAR = 10_000_000_000.0


async def announced(server: Serving, **fields) -> httpx.Response:
    body = form(*(field(name, value) for name, value in {**FIELDS, **fields}.items()))
    return await server.client.post("/v1/files", content=body, headers={**FORM, **UA})


async def whole(server: Serving, **fields) -> tuple[str, str]:
    answer = await announced(server, **fields)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"], answer.headers["x-together-file-id"]


async def test_in_steps(db: Database):
    content = lines(3)
    async with serving(db) as server:
        address, file_id = await whole(server, checksum=hashlib.sha256(content).hexdigest().upper())
        assert address.startswith(f"{server.url}/")
        assert (await server.client.get(f"/v1/files/{file_id}")).status_code == 404
        assert (await server.client.get("/v1/files", headers=UA)).json()["data"] == []
        assert (await server.client.post(f"/v1/files/{file_id}/preprocess")).status_code == 404
        async with new_client() as stranger:
            wrong = await stranger.put(address, content=lines(4))
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "checksum_mismatch")
            for _ in range(2):
                put = await stranger.put(address, content=content)
                assert (put.status_code, put.content) == (200, b"")
                got = (await server.client.get(f"/v1/files/{file_id}", headers=UA)).json()
                assert got.items() >= {"id": file_id, "bytes": len(content), "filename": "in.jsonl"}.items()
            done = await server.client.post(f"/v1/files/{file_id}/preprocess", headers=UA)
            assert done.json().items() >= {"purpose": "batch-api", "FileType": "jsonl", "Processed": True}.items()
            assert (await stranger.put(address, content=content)).status_code == 409
            assert (await stranger.put(address + "x", content=content)).status_code == 404
        read = await server.client.get(f"/v1/files/{file_id}/content")
        assert read.content == content
        assert len((await server.client.get("/v1/files", headers=UA)).json()["data"]) == 1
        await purge.purge_files(db, FAR)
        assert (await server.client.get(f"/v1/files/{file_id}/content")).content == content
    async with db.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(files))).scalar() == 1
        assert (await connection.execute(sa.select(sa.func.count()).select_from(file_parts))).scalar() == 3
        assert (await connection.execute(sa.select(sa.func.count()).select_from(uploads_table))).scalar() == 0


async def test_only_a_digest_of_the_secret_is_kept(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        address, _ = await whole(server)
        token = urlsplit(address).path.rpartition("/")[2]
    async with sqlite_db.read() as connection:
        kept = (await connection.execute(sa.select(uploads_table.c.token_digest))).scalar()
    assert kept == uploads.digest(token)
    assert token not in kept
    assert len(token) >= 43


@pytest.mark.parametrize("way", ["urlencoded", "query", "both"])
async def test_the_other_clients_first_steps(sqlite_db: Database, way: str):
    fields = {**FIELDS, "file_name": "/home/me/in.jsonl"}
    async with serving(sqlite_db) as server:
        answer = await server.client.post(
            "/v1/files", params=fields if way != "urlencoded" else None, data=fields if way != "query" else None,
            headers=UA,
        )  # fmt: skip
        assert answer.status_code == 302, answer.text
        put = await server.client.put(answer.headers["location"], content=lines(1))
        assert put.status_code == 200
        got = await server.client.get(f"/v1/files/{answer.headers['x-together-file-id']}")
        assert got.json()["filename"] == "in.jsonl"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"purpose": ""}, "no purpose"),
        ({"purpose": "x"}, "is not known"),
        ({"file_name": ""}, "needs a name"),
        ({"file_name": "a\0.jsonl"}, "NUL"),
        ({"file_name": "a.csv"}, "Must be .jsonl"),
        ({"file_type": "exe"}, "file_type must be"),
        ({"checksum": "abc"}, "SHA-256 in hex"),
        ({"expires_after[seconds]": "1"}, "needs both"),
    ],
)
async def test_a_first_step_refused(sqlite_db: Database, fields: dict[str, str], sentence: str):
    async with serving(sqlite_db) as server:
        answer = await announced(server, **fields)
        assert answer.status_code == 400
        assert sentence in answer.json()["error"]
        same = await server.client.post("/v1/files", data={**FIELDS, **fields}, headers=UA)
        assert (same.status_code, sentence in same.json()["error"]) == (400, True)
        broken = await server.client.post(
            "/v1/files", content=b"purpose=%ff&file_name=a.jsonl",
            headers={**UA, "Content-Type": "application/x-www-form-urlencoded"},
        )  # fmt: skip
        assert broken.status_code == 400


async def test_what_is_put_is_looked_at(db: Database):
    async with serving(db, max_file_bytes=50_000, max_upload_line_bytes=1000) as server:
        address, file_id = await whole(server)
        for content, status in ((b"", 400), (b"\n\n", 400), (b"x" * 1001, 400), (lines(1000), 413)):
            assert (await server.client.put(address, content=content)).status_code == status
        assert (await server.client.get(f"/v1/files/{file_id}")).status_code == 404
        await server.client.put(address, content=b"{broken\n")
        told = (await server.client.get(f"/v1/files/{file_id}")).json()
        assert (told["status"], told["processing_status"]) == ("error", "FAILED")
        assert told["status_details"].startswith("1 of 1 lines is wrong; line 1: ")


async def test_a_file_that_a_batch_uses_stays_as_it_is(db: Database):
    async with serving(db) as server:
        address, file_id = await whole(server)
        await server.client.put(address, content=lines(1))
        async with db.write() as connection:
            used = (await connection.execute(sa.select(files.c.id).where(files.c.public_id == file_id))).scalar_one()
            made = {"public_id": "batch_x", "file_id": used, "state": "in_progress", "source": "x", "defaults": "{}"}
            await connection.execute(sa.insert(batches).values(**made, max_attempts=1, created_at=1.0))
        assert (await server.client.put(address, content=lines(2))).status_code == 409
        assert (await server.client.get(f"/v1/files/{file_id}/content")).content == lines(1)


async def test_by_the_path_of_the_specification(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        body = form(file_field(lines(2)), *(field(name, value) for name, value in FIELDS.items()))
        answer = await server.client.post("/v1/files/upload", content=body, headers={**FORM, **UA})
        assert (answer.status_code, answer.json()["bytes"]) == (200, len(lines(2)))
        body = form(*(field(name, value) for name, value in FIELDS.items()))
        answer = await server.client.post("/v1/files/upload", content=body, headers={**FORM, **UA})
        assert (answer.status_code, "no file" in answer.json()["error"]) == (400, True)
        body = form(file_field(lines(2), "in.txt"), *(field(name, value) for name, value in FIELDS.items()))
        answer = await server.client.post("/v1/files/upload", content=body, headers={**FORM, **UA})
        assert (answer.status_code, "send file_name first" in answer.json()["error"]) == (400, True)


async def test_in_parts(db: Database):
    content = lines(30_000)
    cut = len(content) // 2 + 3
    asked = {**FIELDS, "file_size": len(content), "num_parts": 2, "checksum": hashlib.sha256(content).hexdigest()}
    async with serving(db) as server:
        client = server.client
        begun = (await client.post("/v1/files/multipart/initiate", json=asked, headers=UA)).json()
        assert [part["PartNumber"] for part in begun["parts"]] == [1, 2]
        named = {"upload_id": begun["upload_id"], "file_id": begun["file_id"]}
        etags = {}
        async with new_client() as stranger:
            for number, piece in ((2, b"other"), (2, content[cut:]), (1, content[:cut])):
                put = await stranger.put(begun["parts"][number - 1]["URL"], content=piece)
                assert put.status_code == 200
                etags[number] = put.headers["etag"].strip('"')
            for odd in ("0", "x", "10001", "-1", "99999999999"):
                url = begun["parts"][0]["URL"].removesuffix("1") + odd
                assert (await stranger.put(url, content=b"x")).status_code == 404
        assert etags[1] == hashlib.md5(content[:cut]).hexdigest()  # noqa: S324 - what S3's ETag is
        good = [{"part_number": number, "etag": etags[number]} for number in (1, 2)]
        for wrong in (good[:1], good[1:], [*good, good[0]], [good[0], {"part_number": 2, "etag": "x"}], []):
            answer = await client.post("/v1/files/multipart/complete", json={**named, "parts": wrong}, headers=UA)
            assert (answer.status_code, isinstance(answer.json()["error"], str)) == (400, True)
        for _ in range(2):
            answer = await client.post("/v1/files/multipart/complete", json={**named, "parts": good}, headers=UA)
            assert answer.json()["file"]["id"] == begun["file_id"], answer.text
        assert (await client.get(f"/v1/files/{begun['file_id']}/content")).content == content
        assert (await client.post("/v1/files/multipart/abort", json=named)).status_code == 409
    await purge.purge_files(db, FAR)
    async with db.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(file_parts))).scalar() == 30_000


async def test_parts_given_up(db: Database):
    async with serving(db) as server:
        asked = {**FIELDS, "file_size": 100, "num_parts": 1}
        begun = (await server.client.post("/v1/files/multipart/initiate", json=asked)).json()
        await server.client.put(begun["parts"][0]["URL"], content=b"x")
        named = {"upload_id": begun["upload_id"], "file_id": begun["file_id"]}
        for _ in range(2):
            assert (await server.client.post("/v1/files/multipart/abort", json=named)).status_code == 200
        assert (await server.client.put(begun["parts"][0]["URL"], content=b"x")).status_code == 409
        for wrong in ({"file_size": -1}, {"file_size": 0}, {"num_parts": 10**30}, {"num_parts": 0}, {"purpose": "x"},
                      {"file_name": "\ud800"}, {"file_name": "a\0.jsonl"}, {"checksum": "\ud800"}):  # fmt: skip
            answer = await server.client.post("/v1/files/multipart/initiate", content=json.dumps({**asked, **wrong}))
            assert answer.status_code == 400, wrong
        huge = await server.client.post("/v1/files/multipart/initiate", json={**asked, "file_size": 2**60})
        assert huge.status_code == 413
        for path in ("complete", "abort"):
            body = {"upload_id": "\0", "file_id": "x", "parts": [{"part_number": 1, "etag": ""}]}
            answer = await server.client.post(f"/v1/files/multipart/{path}", json=body)
            assert answer.status_code in (400, 404)
            nobodys = await server.client.post(f"/v1/files/multipart/{path}", json={**body, "upload_id": "upload_x"})
            assert nobodys.status_code == 404
    async with db.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(file_parts))).scalar() == 0


async def test_with_its_own_client(db: Database, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(5))
    key = await tenants.create_key(db, tenant="t", name="k", is_admin=False, now=0)
    async with serving(db) as server, AsyncTogether(api_key=key, base_url=server.url) as client:
        made = await client.files.upload(file=path, purpose="batch-api", check=True)
        assert (made.filename, made.bytes, made.file_type) == ("in.jsonl", len(lines(5)), "jsonl")
        assert [each.id for each in (await client.files.list()).data] == [made.id]
        assert (await client.files.retrieve(made.id)).id == made.id
        assert await (await client.files.content(made.id)).read() == lines(5)
        await client.files.delete(made.id)
        assert (await client.files.list()).data == []
