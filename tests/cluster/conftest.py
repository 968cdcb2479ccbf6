"""A real Redis for the session, and a cluster with a database of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def _redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("cluster-redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_process: RedisServer) -> RedisServer:
    """Running, and empty."""
    if not _redis_process.is_running:
        _redis_process.start()
    _redis_process.go_on()
    _redis_process.admin().flushall()
    return _redis_process


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the started processes keep their compiled modules."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def cluster(tmp_path, postgres_db_url: str, redis_server: RedisServer, compiled: Path) -> Iterator[Cluster]:
    """Nothing but the servers: the test starts what it needs."""
    made = Cluster(tmp_path, postgres_db_url, redis_server, compiled)
    try:
        yield made
    finally:
        made.close()
