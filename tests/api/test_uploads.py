"""OpenAI's uploads: parts in any order, joined in the order that is said; and OpenAI's own client for all of it."""

import hashlib
import json

import pytest
import sqlalchemy as sa
from openai import AsyncOpenAI

from promptmill.engine import Database
from promptmill.store import purge, tenants
from promptmill.tables import file_parts, upload_parts, uploads
from promptmill.tables import files as files_table
from tests.api.forms import FORM, field, file_field, form, lines
from tests.api.server import Serving, serving

FAR = 10_000_000_000.0
ASKED = {"filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch", "bytes": 100}


async def begun(server: Serving, **fields) -> dict:
    answer = await server.client.post("/v1/uploads", json={**ASKED, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def brought(server: Serving, upload: dict, data: bytes) -> str:
    answer = await server.client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("blob", data)})
    assert answer.json().items() >= {"object": "upload.part", "upload_id": upload["id"]}.items(), answer.text
    return answer.json()["id"]


async def count(db: Database, table: sa.Table) -> int:
    async with db.read() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()


async def test_parts_become_a_file(db: Database):
    content = lines(20_000)
    cut = len(content) // 3
    async with serving(db) as server:
        after = {"anchor": "created_at", "seconds": 7200}
        upload = await begun(server, bytes=len(content), expires_after=after)
        assert upload.items() >= {"object": "upload", "status": "pending", "bytes": len(content)}.items()
        assert "file" not in upload
        last, first = await brought(server, upload, content[cut:]), await brought(server, upload, content[:cut])
        extra = await brought(server, upload, b"not wanted")
        complete = f"/v1/uploads/{upload['id']}/complete"
        for wrong in ([], [first], [first, first], [first, "part_x"], [first, last, extra], ["\ud800"]):
            answer = await server.client.post(complete, content=json.dumps({"part_ids": wrong}))
            assert answer.status_code == 400, wrong
        answer = await server.client.post(complete, json={"part_ids": [first, last], "md5": "0" * 32})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "md5")
        assert await count(db, upload_parts) == 3
        said = {"part_ids": [first, last], "md5": hashlib.md5(content).hexdigest()}  # noqa: S324 - OpenAI's choice
        for _ in range(2):
            done = (await server.client.post(complete, json=said)).json()
            assert done["status"] == "completed"
            assert done["file"]["bytes"] == len(content)
            assert done["file"]["expires_at"] - done["file"]["created_at"] == 7200
        read = await server.client.get(f"/v1/files/{done['file']['id']}/content")
        assert read.content == content
        more = await server.client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"x"})
        assert more.status_code == 409
        assert (await server.client.post(f"/v1/uploads/{upload['id']}/cancel")).status_code == 409
    assert (await count(db, upload_parts), await count(db, file_parts)) == (0, 20_000)
    await purge.purge_files(db, done["file"]["created_at"])
    assert await count(db, files_table) == 1


async def test_given_up(db: Database):
    async with serving(db) as server:
        upload = await begun(server)
        part = await brought(server, upload, b"x")
        for _ in range(2):
            answer = await server.client.post(f"/v1/uploads/{upload['id']}/cancel")
            assert answer.json()["status"] == "cancelled"
        answer = await server.client.post(f"/v1/uploads/{upload['id']}/complete", json={"part_ids": [part]})
        assert answer.status_code == 409
    assert await count(db, file_parts) == 0


async def test_what_never_ends_is_removed(db: Database):
    async with serving(db) as server:
        await brought(server, await begun(server), b"x" * 3_000_000)
        assert (await server.client.get("/v1/files")).json()["data"] == []
    await purge.purge_files(db, FAR)
    for table in (uploads, upload_parts, files_table, file_parts):
        assert await count(db, table) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes": 0}, {"bytes": -1}, {"bytes": 10**40}, {"bytes": "9"}, {"filename": ""}, {"filename": "a\0.jsonl"},
        {"filename": "\ud800.jsonl"}, {"filename": "a.txt"}, {"purpose": "x"}, {"mime_type": 5}, {"mime_type": "\0"},
        {"expires_after": {"anchor": "created_at", "seconds": 1}}, {"expires_after": {"anchor": "x", "seconds": 3600}},
        {"expires_after": 5}, {"filename": None},
    ],
)  # fmt: skip
async def test_refused(sqlite_db: Database, wrong: dict):
    async with serving(sqlite_db) as server:
        answer = await server.client.post("/v1/uploads", content=json.dumps({**ASKED, **wrong}))
        assert (answer.status_code, bool(answer.json()["error"]["message"])) == (400, True)


async def test_refused_parts(db: Database):
    async with serving(db, max_file_bytes=1000) as server:
        assert (await server.client.post("/v1/uploads", json={**ASKED, "bytes": 1001})).status_code == 413
        upload = await begun(server)
        path = f"/v1/uploads/{upload['id']}/parts"
        await brought(server, upload, b"x" * 600)
        for body, status in (
            (form(file_field(b"x")), 400), (form(field("data", "x")), 400), (form(), 400), (b"", 400),
            (form(file_field(b"x", name="data"))[:-9], 400), (form(file_field(b"x" * 401, name="data")), 413),
            (b"[" * 100_000, 400),
        ):  # fmt: skip
            assert (await server.client.post(path, content=body, headers=FORM)).status_code == status
        assert (await server.client.post(path, json={})).status_code == 415
        deep = await server.client.post(f"/v1/uploads/{upload['id']}/complete", content=b'{"part_ids":' + b"[" * 9999)
        assert deep.status_code == 400
        for upload_id in ("upload_x", "%00", "x" * 2000):
            for path, body in (("complete", {"part_ids": ["x"]}), ("cancel", None)):
                answer = await server.client.post(f"/v1/uploads/{upload_id}/{path}", json=body)
                assert answer.status_code == 404
    assert await count(db, file_parts) == 1


async def test_another_tenants(db: Database):
    one, two = [await tenants.create_key(db, tenant=name, name=name, is_admin=False, now=0) for name in "ab"]
    async with serving(db) as server:
        server.client.headers["Authorization"] = f"Bearer {one}"
        upload = await begun(server)
        part = await brought(server, upload, b"x")
        server.client.headers["Authorization"] = f"Bearer {two}"
        for path, body in (("complete", {"part_ids": [part]}), ("cancel", None)):
            assert (await server.client.post(f"/v1/uploads/{upload['id']}/{path}", json=body)).status_code == 404
        files = {"data": b"x"}
        assert (await server.client.post(f"/v1/uploads/{upload['id']}/parts", files=files)).status_code == 404


async def test_with_openais_client(db: Database, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(4000))
    async with serving(db) as server, AsyncOpenAI(api_key="any", base_url=f"{server.url}/v1") as client:
        after = {"anchor": "created_at", "seconds": 3600}
        made = await client.files.create(file=path, purpose="batch", expires_after=after)
        assert made.status == "processed"
        assert abs(made.expires_at - made.created_at - 3600) <= 1  # both are whole seconds
        assert (await client.files.retrieve(made.id)).bytes == len(lines(4000))
        assert (await client.files.content(made.id)).content == lines(4000)
        other = await client.files.create(file=("b.jsonl", lines(1)), purpose="batch")
        assert [each.id async for each in client.files.list(limit=1)] == [other.id, made.id]
        joined = await client.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose="batch", part_size=100_000
        )
        assert joined.file is not None
        assert (await client.files.content(joined.file.id)).content == lines(4000)
        assert (await client.files.delete(made.id)).deleted
