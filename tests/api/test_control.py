"""Lanes, tenants and everything, over HTTP: for an admin's key, or on a server without keys."""

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import UsageError
from promptmill.job import LaneState
from promptmill.store import lanes, tenant_terms, tenants
from promptmill.tables import tenants as tenant_rows
from tests.api.server import serving
from tests.api.test_batch_control import made, post, refused, shown
from tests.api.uploaded import OPENAI

ADMINS_ONLY = [
    ("GET", "/v1/lanes"), ("POST", "/v1/lanes/1/pause"), ("POST", "/v1/lanes/1/resume"), ("GET", "/v1/tenants"),
    ("GET", "/v1/tenants/one"), ("POST", "/v1/tenants/one"), ("PATCH", "/v1/tenants/one"),
    ("POST", "/v1/tenants/one/pause"), ("POST", "/v1/tenants/one/resume"), ("POST", "/v1/pause"),
    ("POST", "/v1/resume"), ("GET", "/v1/pauses"),
]  # fmt: skip


async def test_only_an_admin_controls_what_is_all_tenants(sqlite_db: Database):
    key = await tenants.create_key(sqlite_db, tenant="one", name="k", is_admin=False, now=1.0)
    admin = await tenants.create_key(sqlite_db, tenant="one", name="a", is_admin=True, now=1.0)
    await lanes.ensure(sqlite_db, "up", "m")
    async with serving(sqlite_db) as server:
        for method, path in ADMINS_ONLY:
            mine, theirs = ({"Authorization": f"Bearer {each}"} for each in (key, admin))
            told = await post(server, path, {}, status=403, headers=mine, method=method)
            assert refused(told) == ("admin_key_needed", None)
            await post(server, path, {}, headers=theirs, method=method)


async def test_a_lane_is_paused_and_resumed_and_a_halted_one_tries_again(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        server.app.state.db = sqlite_db
        await made(server)
        (lane,) = (await post(server, "/v1/lanes", method="GET"))["data"]
        assert (lane["object"], lane["model"], lane["state"], lane["paused"]) == ("lane", "m", "unknown", False)
        path = f"/v1/lanes/{lane['id']}"
        assert (await post(server, f"{path}/pause"))["paused"]
        (told,) = (await post(server, "/v1/pauses", method="GET"))["data"]
        assert (told["what"], told["id"], told["reason"]) == ("lane", str(lane["id"]), None)
        await lanes.halted(sqlite_db, lane_ids=[lane["id"]], reason="the key is wrong")
        resumed = await post(server, f"{path}/resume")
        assert (resumed["paused"], resumed["state"], resumed["reason"]) == (False, LaneState.UNKNOWN, None)
        assert refused(await post(server, "/v1/lanes/77/pause", status=404)) == ("not_found", "id")


async def test_a_tenants_share_and_caps(db: Database):
    async with serving(db) as server:
        server.app.state.db = db
        batch = await made(server)
        tenant = await post(server, "/v1/tenants/default", method="GET")
        assert tenant["usage"] == {"batches": 1, "jobs": 3, "in_flight": 0, "prompt_tokens": 0, "completion_tokens": 0}
        caps = {"weight": 3.0, "max_in_flight": 5, "requests_per_minute": 60.0, "tokens_per_minute": 1e6}
        changed = await post(server, "/v1/tenants/default", caps)
        assert {name: changed[name] for name in caps} == caps
        changed = await post(server, "/v1/tenants/default", {"max_in_flight": None}, method="PATCH")
        assert (changed["max_in_flight"], changed["weight"]) == (None, 3.0)
        assert (await post(server, "/v1/tenants", method="GET"))["data"] == [changed]
        assert refused(await post(server, "/v1/tenants/default", {"weight": 0}, status=400))[1] == "weight"
        assert refused(await post(server, "/v1/tenants/nobody", {"weight": 1}, status=404)) == ("not_found", "name")
        assert (await post(server, "/v1/tenants/default/pause"))["paused"]
        assert (await shown(server, batch["id"]))["waits_for"] == "tenant_paused"
        assert not (await post(server, "/v1/tenants/default/resume"))["paused"]


async def test_everything_is_paused_and_what_was_paused_by_itself_stays_so(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        server.app.state.db = sqlite_db
        batch = await made(server)
        await post(server, f"/v1/batches/{batch['id']}/pause")
        assert (await post(server, "/v1/pause"))["paused"]
        assert [each["what"] for each in (await post(server, "/v1/pauses", method="GET"))["data"]] == ["batch", "all"]
        assert not (await post(server, "/v1/resume"))["paused"]
        (left,) = (await post(server, "/v1/pauses", method="GET"))["data"]
        assert (left["what"], left["id"]) == ("batch", batch["id"])


async def test_what_waits_for_everything_says_so(sqlite_db: Database):
    async with serving(sqlite_db) as server:
        server.app.state.db = sqlite_db
        batch = await made(server, headers=OPENAI, canary=2)
        assert batch["waits_for"] == "canary"
        await post(server, "/v1/pause")
        assert (await shown(server, batch["id"]))["waits_for"] == "all_paused"


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
async def test_a_tenant_s_name_is_a_part_of_its_address(sqlite_db: Database, name):
    with pytest.raises(UsageError, match="leave / and a bare"):
        await tenants.ensure(sqlite_db, name, now=1.0)
    assert [row.name for row in await tenant_terms.listed(sqlite_db)] == ["default"]


async def test_a_tenant_of_before_keeps_its_name(sqlite_db: Database):
    async with sqlite_db.write() as connection:
        await connection.execute(sa.insert(tenant_rows).values(name="a/b", created_at=1.0))
    assert await tenants.ensure(sqlite_db, "a/b", now=2.0) == 2
