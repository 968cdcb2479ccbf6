"""A cluster with a database of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.redis_server import RedisServer


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
