"""What is to be expected, over HTTP: a dry run of a batch, and the foresight of those that were made."""

import asyncio
import time

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.settings import PriceConfig
from promptmill.store import tenants, workers
from promptmill.tables import metadata
from tests.api.server import Serving, serving
from tests.api.uploaded import OPENAI, TOGETHER, line, uploaded
from tests.conftest import eventually

PRICES = (PriceConfig(models=("m",), prompt=1.0, completion=2.0),)


async def asked(server: Serving, file_id: str, *, headers=OPENAI, **more):
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "dry_run": True, **more}
    return await server.client.post("/v1/batches", json=body, headers=headers)


async def dry_run(server: Serving, file_id: str, **more) -> dict:
    answer = await asked(server, file_id, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def everything(db: Database) -> dict[str, int]:
    """Table → its rows."""
    async with db.read() as connection:
        counts = {}
        for table in metadata.sorted_tables:
            counts[table.name] = (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
        return counts


async def test_a_dry_run_tells_tokens_money_and_time_and_makes_nothing(db: Database):
    async with serving(db, requests_per_minute=600, prices=PRICES) as server:
        file_id = await uploaded(db, [line(f"r-{n}", text="four" * 10, max_tokens=1_000) for n in range(100)])
        before = await everything(db)
        told = await dry_run(server, file_id, completion_window="5s")
        again = await asked(server, file_id, headers={**OPENAI, "Idempotency-Key": "k"})
        assert await everything(db) == before
    assert again.status_code == 200
    assert told["object"] == "batch.dry_run"
    assert told["request_counts"] == {"total": 100, "invalid": 0}
    assert told["errors"] == []
    (lane,) = told["lanes"]
    assert (lane["model"], lane["jobs"], lane["completion_guessed"], lane["limited_by"]) == (
        "m", 100, True, "requests_per_minute",
    )  # fmt: skip
    assert lane["prompt_tokens"] == told["tokens"]["prompt"] > 1_000
    assert lane["completion_tokens"] == {"low": 0, "likely": 25_600, "high": 100_000}
    assert lane["cost"]["likely"] == pytest.approx((lane["prompt_tokens"] + 2 * 25_600) / 1e6, rel=1e-3)
    assert (told["cost"], told["currency"]) == (lane["cost"], "USD")
    assert told["estimated_seconds"] == lane["seconds"] == {"low": 10.0, "likely": 10.0, "high": 20.0}
    assert told["expires_at"] == pytest.approx(time.time() + 5, abs=5)
    assert (told["holds_deadline"], told["late_seconds"]) == (False, pytest.approx(5.0, abs=0.5))
    assert lane["call_seconds"] is None  # and not in the time
    assert lane["queue"] == {"ahead": 0, "beside": 0, "share": 1.0}


async def test_what_is_not_known_is_null(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        told = await dry_run(server, await uploaded(sqlite_db, [line("a")]), completion_window="background")
    assert (told["cost"], told["estimated_seconds"], told["expires_at"]) == (None, None, None)
    assert (told["holds_deadline"], told["late_seconds"], told["lanes"][0]["limited_by"]) == (None, 0.0, None)


async def test_wrong_lines_are_told_as_a_batch_would_tell_them(db: Database):
    lines = [line("a"), b'{"custom_id": "b", "body": \n', line("c"), line("a"), line("d", url="/v1/embeddings"), b" \n"]
    async with serving(db) as server:
        file_id = await uploaded(db, lines)
        told = await dry_run(server, file_id)
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = (await server.client.post("/v1/batches", json=body, headers=OPENAI)).json()

        async def failed():
            shown = (await server.client.get(f"/v1/batches/{batch['id']}", headers=OPENAI)).json()
            return shown if shown["status"] == "failed" else None

        refused = await eventually(failed)
    assert told["request_counts"] == {"total": 5, "invalid": 3}
    assert told["errors"] == refused["errors"]["data"]
    assert [error["line"] for error in told["errors"]] == [2, 4, 5]
    assert "custom_id 'a' was seen before, on line 1" in told["errors"][1]["message"]


async def test_lines_for_any_endpoint_in_togethers_dialect(sqlite_db: Database):
    lines = [line("a"), line("b", url="/v1/embeddings", input="x"), line("c", url=None)]
    async with serving(sqlite_db) as server:
        theirs = await dry_run(server, await uploaded(sqlite_db, lines, purpose="batch-api"), headers=TOGETHER)
        ours = await dry_run(server, await uploaded(sqlite_db, lines))
    assert (theirs["request_counts"], ours["request_counts"]) == (
        {"total": 3, "invalid": 0},
        {"total": 3, "invalid": 1},
    )


async def test_a_hundred_errors_are_told_and_all_are_counted(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        told = await dry_run(server, await uploaded(sqlite_db, [b"{]\n"] * 250))
    assert told["request_counts"] == {"total": 250, "invalid": 250}
    assert [error["line"] for error in told["errors"]] == list(range(1, 101))
    assert (told["lanes"], told["tokens"]["prompt"]) == ([], 0)


async def test_what_cannot_be_asked_of_a_batch_cannot_be_asked_of_a_dry_run(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        file_id = await uploaded(sqlite_db, [line("a")])
        for more, param in (
            ({"completion_window": "soon"}, "completion_window"),
            ({"priority": "urgent"}, "priority"),
            ({"endpoint": "/v1/poems"}, "endpoint"),
            ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
            ({"input_file_id": "file-none"}, "input_file_id"),
            ({"input_file_id": None, "open": True}, "input_file_id"),
        ):
            answer = await asked(server, file_id, **more)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_nobody_reads_the_files_of_another_tenant(sqlite_db: Database):
    keys = [await tenants.create_key(sqlite_db, tenant=t, name="k", is_admin=False, now=1.0) for t in ("one", "two")]
    async with serving(sqlite_db) as server:
        theirs = await uploaded(sqlite_db, [line("a")], tenant_id=2)
        answers = [await asked(server, theirs, headers={"Authorization": f"Bearer {key}"}) for key in keys]
    assert sorted(answer.status_code for answer in answers) == [200, 400]


async def test_others_have_their_turn_while_a_large_file_is_read(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        file_id = await uploaded(sqlite_db, (line(f"r-{n}") for n in range(20_000)))
        reading = asyncio.create_task(dry_run(server, file_id))
        waits = []
        while not reading.done():
            began = time.process_time()  # what others do on a busy machine is not counted
            await asyncio.sleep(0)
            waits.append(time.process_time() - began)
        told = await reading
    assert told["request_counts"]["total"] == 20_000
    assert sorted(waits)[len(waits) * 9 // 10] < 0.03


# ---------------------------------------------------------------- of batches that were made


async def test_the_foresight_of_a_batch(db: Database):
    async with serving(db, base_url="http://up", requests_per_minute=6_000) as server:
        file_id = await uploaded(db, [line(f"r-{n}") for n in range(600)])
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = (await server.client.post("/v1/batches", json=body, headers=OPENAI)).json()
        assert made["foresight"]["reason"] in ("reading", "no_worker")

        async def running():
            shown = (await server.client.get(f"/v1/batches/{made['id']}", headers=OPENAI)).json()
            return shown if shown["status"] == "in_progress" else None

        shown = await eventually(running)
        assert shown["foresight"] == {
            "seconds_left": None, "finishes_at": None, "holds_deadline": None, "late_seconds": 0.0,
            "reason": "no_worker",
        }  # fmt: skip
        await workers.register(db, name="w", now=time.time())
        for headers in (OPENAI, TOGETHER):
            found = (await server.client.get(f"/v1/batches/{made['id']}", headers=headers)).json()["foresight"]
            assert found["seconds_left"] == {"low": 6.0, "likely": 6.0, "high": 12.0}
            assert found["finishes_at"] == pytest.approx(time.time() + 6, abs=10)
            assert (found["holds_deadline"], found["late_seconds"], found["reason"]) == (True, 0.0, None)
        (listed,) = (await server.client.get("/v1/batches", headers=OPENAI)).json()["data"]
        assert listed["foresight"]["seconds_left"]["likely"] == 6.0
        paused = await server.client.post(f"/v1/batches/{made['id']}/pause", headers=OPENAI)
        assert (paused.json()["foresight"]["reason"], paused.json()["foresight"]["seconds_left"]) == ("paused", None)
        await server.client.post(f"/v1/batches/{made['id']}/cancel", headers=OPENAI)

        async def ended():
            shown = (await server.client.get(f"/v1/batches/{made['id']}", headers=OPENAI)).json()
            return shown if shown["status"] == "cancelled" else None

        assert (await eventually(ended))["foresight"] is None
