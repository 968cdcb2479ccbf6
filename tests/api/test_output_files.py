"""Output and error files: while the batch runs and afterwards, whole and in ranges; and answers that are audio."""

import asyncio
import base64
import gzip
import json

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.outcome import Answer
from promptmill.store import views
from promptmill.tables import files
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, chat, line, rejected, row_of, uploaded, work
from tests.conftest import eventually

ENDPOINT = "/v1/chat/completions"


async def started(server: Serving, db: Database, count: int, **more) -> str:
    body = {"input_file_id": await uploaded(db, [line(f"c{n}") for n in range(count)]), "endpoint": ENDPOINT, **more}
    batch = (await server.client.post("/v1/batches", json=body, headers=OPENAI)).json()
    await eventually(lambda: in_progress(server, batch["id"]))
    return batch["id"]


async def shown(server: Serving, batch_id: str) -> dict:
    return (await server.client.get(f"/v1/batches/{batch_id}", headers=OPENAI)).json()


async def in_progress(server: Serving, batch_id: str) -> bool:
    return (await shown(server, batch_id))["status"] == "in_progress"


def lines_of(answer) -> list[dict]:
    return [json.loads(each) for each in answer.content.splitlines()]


async def test_what_succeeded_and_what_did_not(db: Database):
    async with serving(db) as server:
        batch_id = await started(server, db, 4)
        await work(db, batch_id, [chat("one"), rejected("too long"), chat("three")], order=[2, 1, 0])
        batch = await shown(server, batch_id)

        output = await server.client.get(f"/v1/files/{batch['output_file_id']}/content")
        assert [each["custom_id"] for each in lines_of(output)] == ["c0", "c2"]  # in input order
        assert lines_of(output)[0]["response"]["status_code"] == 200
        assert lines_of(output)[0]["error"] is None
        assert (output.headers["x-incomplete"], output.headers["x-last-line"]) == ("true", "2")
        errors = await server.client.get(f"/v1/files/{batch['error_file_id']}/content")
        assert [(each["custom_id"], each["response"]["status_code"]) for each in lines_of(errors)] == [("c1", 400)]

        await work(db, batch_id, [chat("four")])
        plain = await server.client.get(
            f"/v1/files/{batch['output_file_id']}/content", headers={"Accept-Encoding": "identity"}
        )
        assert (plain.headers["x-incomplete"], plain.headers["x-last-line"]) == ("false", "3")
        assert int(plain.headers["content-length"]) == len(plain.content)
        part = await server.client.get(f"/v1/files/{batch['output_file_id']}/content", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, plain.content[10:20])

        told = (await server.client.get(f"/v1/files/{batch['output_file_id']}")).json()
        assert (told["purpose"], told["filename"], told["bytes"]) == (
            "batch_output", f"{batch_id}_output.jsonl", len(plain.content)
        )  # fmt: skip
        row = await row_of(db, batch_id)
        assert told["expires_at"] == pytest.approx((row.finished_at or 0) + 30 * 86_400, abs=1)


async def test_without_results_there_are_no_files(db: Database):
    async with serving(db) as server:
        batch_id = await started(server, db, 1)
        batch = await shown(server, batch_id)
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
        await work(db, batch_id, [rejected()])
        batch = await shown(server, batch_id)
        assert batch["status"] == "completed"
        assert batch["output_file_id"] is None
        assert batch["error_file_id"] is not None


async def test_asked_for_at_once_they_are_made_once(db: Database):
    async with serving(db) as server:
        batch_id = await started(server, db, 2)
        await work(db, batch_id, [chat(), rejected()])
        row = await row_of(db, batch_id)
        made = await asyncio.gather(*(views.of_batches(db, [row], now=1.0) for _ in range(8)))
        assert all(each == made[0] for each in made)
        async with db.read() as connection:
            count = sa.select(sa.func.count()).select_from(files).where(files.c.batch_id == row.id)
            assert (await connection.execute(count)).scalar() == 2


async def test_compressed_where_the_caller_takes_that(db: Database):
    async with serving(db) as server:
        batch_id = await started(server, db, 50)
        await work(db, batch_id, [chat("a long answer " * 20)] * 50)
        output_id = (await shown(server, batch_id))["output_file_id"]
        async with server.client.stream(
            "GET", f"/v1/files/{output_id}/content", headers={"Accept-Encoding": "gzip"}
        ) as answer:
            raw = b"".join([chunk async for chunk in answer.aiter_raw()])
        assert answer.headers["content-encoding"] == "gzip"
        assert len(gzip.decompress(raw).splitlines()) == 50


async def test_a_batch_that_is_taken_up_again_has_another_file(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        batch_id = await started(server, sqlite_db, 2)
        await work(sqlite_db, batch_id, [chat(), rejected()])
        output_id = (await shown(server, batch_id))["output_file_id"]
        path = f"/v1/files/{output_id}/content"
        assert len(lines_of(await server.client.get(path))) == 1
        again = await server.client.post(f"/v1/jobs/job_{batch_id.removeprefix('batch_')}-1/retry")
        assert again.status_code == 200, again.text
        await work(sqlite_db, batch_id, [chat()])
        assert len(lines_of(await server.client.get(path))) == 2


async def test_audio_is_told_inline_and_given_as_it_came(db: Database):
    audio = b"RIFF\x00\x01\xff" * 1_000
    async with serving(db) as server:
        batch_id = await started(server, db, 2)
        await work(db, batch_id, [Answer(200, "audio/wav", audio), chat()])
        output_id = (await shown(server, batch_id))["output_file_id"]
        first = lines_of(await server.client.get(f"/v1/files/{output_id}/content"))[0]["response"]["body"]
        assert base64.b64decode(first["data"]) == audio
        assert first["file_id"] == f"file-{batch_id.removeprefix('batch_')}-0"
        heard = await server.client.get(f"/v1/files/{first['file_id']}/content")
        assert (heard.status_code, heard.headers["content-type"], heard.content) == (200, "audio/wav", audio)
        told = (await server.client.get(f"/v1/files/{first['file_id']}")).json()
        assert (told["id"], told["bytes"], told["filename"], told["purpose"]) == (
            first["file_id"], len(audio), f"{first['file_id']}.wav", "batch_output"
        )  # fmt: skip
        assert told["created_at"] == pytest.approx((await row_of(db, batch_id)).finished_at, abs=2)
        for other in (first["file_id"][:-1] + "1", first["file_id"][:-1] + "7", f"file-{'0' * 32}-0",
                      f"{first['file_id']}{'9' * 17}"):  # fmt: skip
            for path in ("", "/content"):
                assert (await server.client.get(f"/v1/files/{other}{path}")).status_code == 404, other


async def test_only_some_rendered_files_are_kept(sqlite_db: Database, monkeypatch):
    monkeypatch.setattr("api.rendered.KEPT_FILES", 1)
    async with serving(sqlite_db) as server:
        contents = {}
        for number in range(3):
            batch_id = await started(server, sqlite_db, 1)
            await work(sqlite_db, batch_id, [chat(f"answer {number}")])
            output_id = (await shown(server, batch_id))["output_file_id"]
            contents[output_id] = (await server.client.get(f"/v1/files/{output_id}/content")).content
        for output_id, content in contents.items():
            answers = await asyncio.gather(*(server.client.get(f"/v1/files/{output_id}/content") for _ in range(4)))
            assert all(answer.content == content for answer in answers)
