"""Who may come in: with keys their holders, without any only this machine."""

import httpx
import pytest

from api.app import create_app
from api.auth import KNOWN_SECONDS, Doorkeeper, is_loopback
from promptmill.errors import NotFound
from promptmill.settings import load
from promptmill.store import tenants
from tests.api.server import serving
from tests.api.test_health import WithState
from tests.conftest import eventually

TOGETHER = {"User-Agent": "Together/Python 3.1.1"}


async def make(db, *, tenant="default", is_admin=False):
    return await tenants.create_key(db, tenant=tenant, name="test", is_admin=is_admin, now=1.0)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


async def test_without_keys_this_machine_is_served_whatever_it_sends(db):
    async with serving(db) as server:
        for headers in ({}, bearer("sk-anything")):
            assert (await server.client.get("/v1/jobs", headers=headers)).status_code == 200


async def test_without_keys_nobody_else_is(sqlite_db):
    app = create_app(load({}, database_url=str(sqlite_db.url.database)))
    async with app.router.lifespan_context(app) as state:
        for address, headers in (("10.0.0.7", {}), ("127.0.0.1", {"X-Forwarded-For": "10.0.0.7"})):
            transport = WithState(app, state)
            transport.client = (address, 4711)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                answer = await client.get("/v1/jobs", headers=headers)
                assert answer.status_code == 403
                assert "promptmill keys create" in answer.json()["error"]["message"]
                assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Host": "rebound.example:8000"},
        {"Origin": "http://localhost.elsewhere.example"},
    ],
)
async def test_without_keys_a_web_page_from_elsewhere_is_refused(sqlite_db, headers):
    """A browser on this machine sends it for whoever wrote the page."""
    async with serving(sqlite_db) as server:
        answer = await server.client.post("/v1/jobs", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_api_keys")
        for own in ({"Origin": "http://localhost:3000"}, {"Host": "localhost"}, {"Host": "[::1]:8000"}):
            assert (await server.client.get("/v1/jobs", headers=own)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer"}, "missing_api_key"),
        ({"Authorization": "Basic eDp5"}, "missing_api_key"),
        (bearer("pm_nobody"), "invalid_api_key"),
        (bearer("pm_" + "0" * 12 + "_" + "a" * 43), "invalid_api_key"),
        (bearer("$TOGETHER_API_KEY"), "invalid_api_key"),
        (bearer("\xe9"), "invalid_api_key"),
    ],
)
async def test_with_keys_there_is_no_way_in_without_one(sqlite_db, headers, code):
    await make(sqlite_db)
    async with serving(sqlite_db) as server:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await server.client.get("/v1/jobs", headers=raw)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_opens_and_a_nearly_right_one_does_not(db):
    key = await make(db)
    async with serving(db) as server:
        assert (await server.client.get("/v1/jobs", headers=bearer(key))).status_code == 200
        nearly = key[:-1] + ("a" if key[-1] != "a" else "b")
        assert (await server.client.get("/v1/jobs", headers=bearer(nearly))).status_code == 401


async def test_together_clients_are_told_in_their_words(sqlite_db):
    await make(sqlite_db)
    async with serving(sqlite_db) as server:
        answer = await server.client.get("/v1/files", headers=TOGETHER)
        assert answer.status_code == 401
        assert isinstance(answer.json()["error"], str)
        answer = await server.client.post("/v1/chat/completions", headers=TOGETHER, json={})
        assert answer.json()["error"]["code"] == "missing_api_key"


async def test_a_revoked_key_opens_nothing_and_leaves_the_door_closed(db, monkeypatch):
    monkeypatch.setattr("api.auth.KNOWN_SECONDS", 0.0)
    monkeypatch.setattr("api.auth.BELIEVED_SECONDS", 0.0)
    key = await make(db)
    async with serving(db) as server:
        assert (await server.client.get("/v1/jobs", headers=bearer(key))).status_code == 200
        (row,) = await tenants.keys(db)
        await tenants.revoke_key(db, row.public_id, now=2.0)
        await tenants.revoke_key(db, row.public_id, now=3.0)
        assert (await server.client.get("/v1/jobs", headers=bearer(key))).status_code == 401
        assert (await server.client.get("/v1/jobs")).status_code == 401
    (row,) = await tenants.keys(db)
    assert row.revoked_at == 2.0
    with pytest.raises(NotFound):
        await tenants.revoke_key(db, "nobody", now=1.0)


async def test_the_first_key_closes_a_server_that_runs(sqlite_db, monkeypatch):
    monkeypatch.setattr("api.auth.KNOWN_SECONDS", 0.0)
    monkeypatch.setattr("api.auth.BELIEVED_SECONDS", 0.0)
    async with serving(sqlite_db) as server:
        assert (await server.client.get("/v1/jobs")).status_code == 200
        await make(sqlite_db)

        async def closed():
            return (await server.client.get("/v1/jobs")).status_code == 401

        await eventually(closed)


async def test_keys_are_kept_as_digests(sqlite_db):
    key = await make(sqlite_db)
    secret = key.rpartition("_")[2]
    async with sqlite_db.read() as connection:
        rows = (await connection.exec_driver_sql("SELECT * FROM promptmill_api_keys")).all()
    assert secret not in str(rows)
    assert len(rows[0].digest) == 64


async def test_the_doorkeeper_asks_seldom(sqlite_db):
    assert KNOWN_SECONDS > 0
    key = await make(sqlite_db)
    keeper = Doorkeeper(sqlite_db)
    first = await keeper._holder(key)
    (row,) = await tenants.keys(sqlite_db)
    await tenants.revoke_key(sqlite_db, row.public_id, now=2.0)
    assert await keeper._holder(key) == first is not None


async def test_metrics_take_an_admins_key(db):
    key, admin = await make(db), await make(db, is_admin=True)
    async with serving(db) as server:
        answer = await server.client.get("/metrics", headers=bearer(key))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_needed")
        answer = await server.client.get("/metrics", headers=bearer(admin))
        assert answer.status_code == 200
        assert "promptmill_http_requests_total" in answer.text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("10.0.0.1", False), ("192.0.2.1", False), ("::", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback
