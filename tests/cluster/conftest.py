"""A cluster with a database of its own for each test."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.redis_server import RedisServer


@pytest.fixture
def cluster(tmp_path, postgres_db_url: str, redis_server: RedisServer) -> Iterator[Cluster]:
    """Nothing but the servers: the test starts what it needs."""
    made = Cluster(tmp_path, postgres_db_url, redis_server)
    try:
        yield made
    finally:
        made.close()
