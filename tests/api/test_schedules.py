"""Schedules over HTTP: made of files and of requests, changed, switched, run, and what became of their fires."""

import time
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.store import tenants
from promptmill.tables import schedules
from tests.api.mill import mill
from tests.api.server import Serving, serving
from tests.api.uploaded import line, uploaded
from tests.conftest import eventually
from tests.worker.endpoint import chat

DAILY = {"name": "report", "cron": "30 2 * * *", "timezone": "Europe/Berlin"}
REQUEST = {
    "custom_id": "r-{{ date }}",
    "body": {"model": "m", "messages": [{"role": "user", "content": "News of {{ date }}?"}]},
}


async def made(server: Serving, *, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/schedules", json={**DAILY, "requests": [REQUEST], **more}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def fault(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_a_schedule_is_kept_as_it_was_asked_for(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        file_id = await uploaded(sqlite_db, [line("a"), line("b")])
        asked = {
            **DAILY, "starts_at": "2027-01-01T00:00", "ends_at": 1_900_000_000, "missed": "all", "catch_up": 7,
            "grace_seconds": 30, "overlap": "queue", "jitter_seconds": 90, "enabled": False,
            "input_file_id": file_id, "endpoint": "/v1/chat/completions", "model": "m", "completion_window": "6h",
            "priority": "high", "metadata": {"team": "news"}, "weight": 2, "max_in_flight": 4, "canary": 1,
            "budget_tokens": 1_000,
        }  # fmt: skip
        schedule = await made(server, requests=None, **asked)
        told = {name: schedule[name] for name in asked}
        assert told == {**asked, "starts_at": 1_798_758_000, "priority": 1_000}
        assert schedule["id"].startswith("sched_")
        assert (schedule["next_fire_at"], schedule["last_fire_at"], schedule["fires"]) == (None, None, 0)

        one = f"/v1/schedules/{schedule['id']}"
        enabled = (await server.client.post(f"{one}/enable")).json()
        assert enabled["next_fire_at"] == 1_798_853_400 - 86_400  # 2027-01-01 02:30 in Berlin
        assert (await server.client.get(one)).json() == enabled
        assert (await server.client.post(f"{one}/disable")).json() == schedule


async def test_what_is_wrong_is_said_with_its_field(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        file_id = await uploaded(sqlite_db, [line("a", text="{{ dat }}"), line("b"), line("b")])
        body = {"messages": [{"role": "user", "content": "{{ today }}"}], "model": "m"}
        for more, status, code, param in [
            ({"name": " "}, 400, "invalid_request", "name"),
            ({"cron": "* * * *"}, 400, "invalid_request", "cron"),
            ({"cron": None}, 400, "missing_required_parameter", "cron"),
            ({"at": 1}, 400, "invalid_request", "cron"),
            ({"cron": None, "at": 1_000_000}, 400, "invalid_request", "at"),
            ({"at": "tomorrow", "cron": None}, 400, "invalid_request", "at"),
            ({"timezone": "Europe/Bonn"}, 400, "invalid_request", "timezone"),
            ({"starts_at": 5, "ends_at": 4}, 400, "invalid_request", "ends_at"),
            ({"ends_at": 1_000_000}, 400, "invalid_request", "ends_at"),
            ({"cron": "*/" + "9" * 5_000 + " * * * *"}, 400, "invalid_request", "cron"),
            ({"missed": "never"}, 400, "invalid_request", "missed"),
            ({"overlap": "no"}, 400, "invalid_request", "overlap"),
            ({"catch_up": 0}, 400, "invalid_request", "catch_up"),
            ({"jitter_seconds": 86_400}, 400, "invalid_request", "jitter_seconds"),
            ({"grace_seconds": 1e300}, 400, "invalid_request", "grace_seconds"),
            ({"completion_window": "soon"}, 400, "invalid_request", "completion_window"),
            ({"weight": 0}, 400, "invalid_request", "weight"),
            ({"not_before": 1}, 400, "invalid_request", "not_before"),
            ({"priority": 9_999}, 400, "invalid_request", "priority"),
            ({"endpoint": "/v1/poems"}, 400, "invalid_endpoint", "endpoint"),
            ({"requests": None}, 400, "missing_required_parameter", "input_file_id"),
            ({"requests": []}, 400, "invalid_request", "requests"),
            ({"requests": [REQUEST, {"custom_id": "x"}]}, 400, "missing_required_parameter", "requests[1].body"),
            ({"requests": [{"body": body}]}, 400, "unknown_template_name", "requests[0]"),
            ({"requests": [REQUEST, REQUEST]}, 400, "duplicate_custom_id", "requests[1].custom_id"),
            ({"requests": None, "input_file_id": "file-no"}, 400, "file_not_found", "input_file_id"),
            ({"requests": None, "input_file_id": file_id}, 400, "unknown_template_name", "input_file_id"),
        ]:
            answer = await server.client.post("/v1/schedules", json={**DAILY, "requests": [REQUEST], **more})
            assert (more, *fault(answer)) == (more, status, code, param)
        assert (await server.client.get("/v1/schedules")).json()["data"] == []


async def test_names_are_unique_and_free_again_when_the_schedule_is_removed(db: Database):
    async with serving(db) as server:
        first = await made(server)
        again = await server.client.post("/v1/schedules", json={**DAILY, "requests": [REQUEST]})
        assert fault(again) == (409, "schedule_name_taken", "name")
        assert len((await server.client.get("/v1/files")).json()["data"]) == 1  # its lines are gone too
        other = await made(server, name="other")
        renamed = await server.client.patch(f"/v1/schedules/{other['id']}", json={"name": "report"})
        assert fault(renamed) == (409, "schedule_name_taken", "name")
        gone = await server.client.delete(f"/v1/schedules/{first['id']}")
        assert gone.json() == {"id": first["id"], "object": "schedule", "deleted": True}
        for method, path in [("GET", ""), ("POST", "/run"), ("GET", "/fires"), ("DELETE", "")]:
            answer = await server.client.request(method, f"/v1/schedules/{first['id']}{path}")
            assert fault(answer) == (404, "not_found", "id")
        await made(server)


async def test_a_key_makes_it_once(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        key = {"Idempotency-Key": "k"}
        first = await made(server, headers=key)
        assert await made(server, headers=key) == first
        run = f"/v1/schedules/{first['id']}/run"
        fire = (await server.client.post(run, headers=key)).json()
        assert (await server.client.post(run, headers=key)).json()["id"] == fire["id"]
        assert (await server.client.post(run)).json()["id"] != fire["id"]


async def test_changes_hold_from_the_next_fire_on(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        schedule = await made(server)
        one = f"/v1/schedules/{schedule['id']}"
        changed = (await server.client.post(one, json={"at": 1_900_000_000, "priority": -5, "budget_cost": 3})).json()
        assert (changed["cron"], changed["at"], changed["next_fire_at"]) == (None, 1_900_000_000, 1_900_000_000)
        assert (changed["priority"], changed["budget_cost"], changed["timezone"]) == (-5, 3, "Europe/Berlin")
        changed = (await server.client.patch(one, json={"cron": "@hourly", "zone": "UTC", "budget_cost": None})).json()
        assert (changed["cron"], changed["at"], changed["budget_cost"]) == ("@hourly", None, None)
        assert changed["next_fire_at"] - time.time() <= 3_600
        wrong = await server.client.patch(one, json={"requests": [{"body": {"model": "m", "messages": []}}]})
        assert fault(wrong)[0] == 400
        assert (await server.client.get(one)).json() == changed
        changed = (
            await server.client.patch(one, json={"enabled": False, "requests": [{"body": REQUEST["body"]}]})
        ).json()
        assert (changed["enabled"], changed["next_fire_at"]) == (False, None)


async def test_tenants_do_not_see_each_others(sqlite_db: Database):
    keys = []
    for name in ("a", "b"):
        key = await tenants.create_key(sqlite_db, tenant=name, name="k", is_admin=False, now=1.0)
        keys.append({"Authorization": f"Bearer {key}"})
    async with serving(sqlite_db) as server:
        schedule = await made(server, headers=keys[0])
        await made(server, headers=keys[1])
        answer = await server.client.get(f"/v1/schedules/{schedule['id']}", headers=keys[1])
        assert fault(answer) == (404, "not_found", "id")
        listed = (await server.client.get("/v1/schedules", headers=keys[0])).json()
        assert [each["id"] for each in listed["data"]] == [schedule["id"]]


async def test_lists_are_paged(db: Database):
    async with serving(db) as server:
        ids = [(await made(server, name=f"s{n}"))["id"] for n in range(3)]
        first = (await server.client.get("/v1/schedules", params={"limit": 2})).json()
        assert ([each["id"] for each in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
        rest = (await server.client.get("/v1/schedules", params={"limit": 2, "after": first["last_id"]})).json()
        assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([ids[0]], False)
        runs = [(await server.client.post(f"/v1/schedules/{ids[0]}/run")).json() for _ in range(3)]
        fires = f"/v1/schedules/{ids[0]}/fires"
        newest = (await server.client.get(fires, params={"limit": 2})).json()
        assert [each["id"] for each in newest["data"]] == [runs[2]["id"], runs[1]["id"]]
        oldest = (await server.client.get(fires, params={"after": newest["last_id"]})).json()
        assert [each["id"] for each in oldest["data"]] == [runs[0]["id"]]
        for path in ("/v1/schedules", fires):
            assert fault(await server.client.get(path, params={"after": "x"})) == (400, "invalid_request", "after")


async def test_run_now_and_at_its_time_through_a_worker(db: Database):
    async with mill(db, lambda _: chat()) as whole:
        client = whole.client
        asked = {"name": "once", "at": 4e9, "requests": [REQUEST], "metadata": {"team": "news"}}
        schedule = (await client.post("/v1/schedules", json=asked)).json()
        manual = (await client.post(f"/v1/schedules/{schedule['id']}/run")).json()
        assert (manual["manual"], manual["number"], manual["state"]) == (True, 1, "fired")
        at = time.time() + 1.0
        sooner = await client.patch(f"/v1/schedules/{schedule['id']}", json={"at": at})
        assert sooner.json()["next_fire_at"] == pytest.approx(at)

        async def fired() -> list[dict[str, Any]]:
            fires = (await client.get(f"/v1/schedules/{schedule['id']}/fires")).json()["data"]
            return fires if [each["batch_status"] for each in fires] == ["completed"] * 2 else []

        planned, by_hand = await eventually(fired)
        assert (by_hand["id"], by_hand["batch_id"]) == (manual["id"], manual["batch_id"])
        assert (planned["fire_time"], planned["manual"], planned["number"]) == (pytest.approx(at), False, 2)
        assert 0 <= planned["carried_out_at"] - at < 10.0
        batch = (await client.get(f"/v1/batches/{planned['batch_id']}")).json()
        assert batch["metadata"]["team"] == "news"
        assert batch["metadata"]["schedule"] == "once"
        output = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).json()
        assert output["custom_id"] == time.strftime("r-%Y-%m-%d", time.gmtime(at))
        after = (await client.get(f"/v1/schedules/{schedule['id']}")).json()
        assert (after["next_fire_at"], after["last_fire_at"], after["fires"]) == (None, planned["fire_time"], 2)


async def test_a_fire_whose_lines_are_good_no_more_fails_and_says_so(sqlite_db: Database):
    async with mill(sqlite_db, lambda _: chat()) as whole:
        client = whole.client
        schedule = (await client.post("/v1/schedules", json={**DAILY, "requests": [REQUEST]})).json()
        async with sqlite_db.write() as connection:  # as a model that has lost its upstream
            await connection.execute(sa.update(schedules).values(endpoint="/v1/embeddings"))
        await client.post(f"/v1/schedules/{schedule['id']}/run")

        async def failed() -> dict[str, Any] | None:
            (fire,) = (await client.get(f"/v1/schedules/{schedule['id']}/fires")).json()["data"]
            return fire if fire["batch_status"] == "failed" else None

        fire = await eventually(failed)
        assert fire["state"] == "fired"
        assert "the line is for /v1/chat/completions, but the batch for /v1/embeddings" in fire["reason"]
