"""docs/limits.md names what can be found in Redis, and the files."""

from pathlib import Path

from tests.worker.limits.conftest import long_established
from worker.limits import Bucket, Limits

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/limits.md").read_text("utf-8")


async def test_every_key_in_redis_has_its_line(redis_server, redis_limiters, clock):
    long_established(redis_server, clock())
    limiter = redis_limiters()
    await limiter.acquire([Bucket("lane:3", Limits(600, 1_000_000, 8))], want=9, tokens_each=10)
    keys = redis_server.admin().keys("*")
    assert len(keys) == 5
    for key in keys:
        assert f"| `{key.replace('lane:3', 'BUCKET')}` |" in TEXT
    for field in redis_server.admin().hkeys("promptmill:lane:3"):
        assert f"`{field}`" in TEXT


def test_every_file_has_its_line():
    for file in (ROOT / "worker/limits").iterdir():
        if file.suffix in (".py", ".lua") and file.stem != "__init__":
            assert f"`{file.name}`" in TEXT
