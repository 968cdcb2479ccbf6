"""The two questions of whoever runs the server: with databases and a Redis that are there, away, or behind."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from api.app import create_app
from promptmill.engine import Database
from promptmill.schema import HEAD
from promptmill.settings import load
from tests.redis_server import RedisServer


@asynccontextmanager
async def client_of(database_url: str, redis_url: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(load({}, database_url=database_url, redis_url=redis_url))
    async with (
        app.router.lifespan_context(app) as state,
        httpx.AsyncClient(transport=WithState(app, state), base_url="http://api") as client,
    ):
        yield client


class WithState(httpx.ASGITransport):
    """What a server does with what the lifespan yields."""

    def __init__(self, app, state) -> None:
        async def called(scope, receive, send):
            await app({**scope, "state": dict(state)}, receive, send)

        super().__init__(called)


def nobody_there() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


async def test_ready_with_a_database_of_ours(db: Database):
    url = db.url.render_as_string(hide_password=False)
    async with client_of(url) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "database": "ok", "redis": "not configured"},
    )


async def test_not_ready_before_the_migration(tmp_path):
    async with client_of(str(tmp_path / "new.sqlite3")) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["database"] == f"the schema is missing, {HEAD} is needed; run: promptmill migrate"


async def test_alive_but_not_ready_while_the_database_is_away():
    async with client_of(f"postgresql://promptmill:secret@127.0.0.1:{nobody_there()}/promptmill") as client:
        alive, ready = await client.get("/healthz"), await client.get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert ready.status_code == 503
    assert ready.json()["database"].startswith("cannot be reached")
    assert "secret" not in ready.text


async def test_not_ready_when_the_database_is_no_database_any_more(tmp_path):
    async with client_of(str(tmp_path / "letter.txt")) as client:
        (tmp_path / "letter.txt").write_text("Dear database, " * 100)
        answer = await client.get("/readyz")
    assert answer.status_code == 503


@pytest.mark.parametrize("there", [True, False])
async def test_redis_is_told_of_but_does_not_decide(sqlite_db: Database, tmp_path, there: bool):
    server = RedisServer(tmp_path)
    if there:
        server.start()
    try:
        async with client_of(str(sqlite_db.url.database), server.url) as client:
            answer = await client.get("/readyz")
    finally:
        server.stop()
    assert answer.status_code == 200
    assert answer.json()["redis"].startswith("ok" if there else "cannot be reached")
