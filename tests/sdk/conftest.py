"""The API as it is run, twice: one process over a file, and a cluster. Each test of a client runs against both."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from tests.cluster.cluster import Cluster
from tests.redis_server import RedisServer
from tests.sdk.places import Place, Served, Upstreams, until_ready
from tests.sdk.toolbox import Node, NoNodeError, installed


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Upstreams]:
    """What both call."""
    made = Upstreams()
    yield made
    made.servers.close()


@pytest.fixture(scope="session")
def served(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """`promptmill serve` over a SQLite file."""
    folder = tmp_path_factory.mktemp("served")
    process = Served(folder, upstreams.environment(folder))
    origin, key = process.start()
    yield Place("serve", origin, origin, key, upstreams)
    code = process.stop()
    log = "".join(process.lines)
    assert code == 0, log
    assert "Traceback" not in log, log
    assert key not in log


@pytest.fixture(scope="session")
def cluster_served(
    upstreams: Upstreams, postgres_url: str, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Two API processes over PostgreSQL and Redis, with a worker for the jobs and one for the chores."""
    redis = RedisServer(tmp_path_factory.mktemp("sdk-redis"))
    redis.start()
    url = _new_database(postgres_url, postgres_template)
    cluster = Cluster(tmp_path_factory.mktemp("sdk-cluster"), url, redis)
    try:
        cluster.environ.update(upstreams.environment(cluster.folder))
        key = cluster.cli("keys", "create", "tests").out.strip()
        cluster.maint()
        cluster.worker()
        origins = cluster.apis("api-1", "api-2")
        for origin in origins:
            until_ready(origin)
        cluster.until_drains(1)
        yield Place("cluster", origins[0], origins[1], key, upstreams)
        cluster.check_all_still_run()
        log = cluster.logs()
        assert "Traceback" not in log, log
        assert key not in log
    finally:
        cluster.close()
        redis.stop()


def _new_database(server_url: str, template: str) -> str:
    async def make() -> None:
        admin = Database(server_url)
        async with admin.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(sa.text(f"CREATE DATABASE sdk TEMPLATE {template}"))
        await admin.aclose()

    with ThreadPoolExecutor(1) as aside:  # a test's loop may be running here
        aside.submit(lambda: asyncio.run(make())).result()
    return sa.make_url(server_url).set(database="sdk").render_as_string(hide_password=False)


@pytest.fixture(params=["serve", "cluster"])
def base(request: pytest.FixtureRequest) -> Place:
    """What holds of the one holds of the other."""
    made: Place = request.getfixturevalue({"serve": "served", "cluster": "cluster_served"}[request.param])
    return made


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Node with the SDKs; CI has to have it."""
    try:
        return installed(tmp_path_factory.mktemp("node"))
    except NoNodeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
