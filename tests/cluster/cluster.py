"""A cluster as its operator runs it: real celery processes, a real PostgreSQL and Redis, and rehearsal endpoints.

Everything that is started here ends with the test, whatever state it is in.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import sqlalchemy as sa
from celery import Celery

from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer
from promptmill.dispatch import DRAIN_QUEUE, DRAIN_TASK, SLOTS_KEY, Dispatcher
from promptmill.engine import Database
from promptmill.intake import Source, Terms, take_in
from promptmill.settings import load
from tests.cli.mill import Ended, Servers, chats
from tests.redis_server import RedisServer

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-key-of-the-cluster"
#: What a stop may take beyond its grace.
STOP_MARGIN_SECONDS = 6.0

_OURS = ("attempts", "jobs", "results", "batches", "lanes", "workers", "leases", "schema")
_LOG_LINES_SHOWN = 60

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
    """Wait for a condition; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}"
        time.sleep(0.02)
    return found


@dataclass
class Process:
    """One started process, with all that it starts: they are a session of their own."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """The processes of a prefork pool."""
        return psutil.Process(self.popen.pid).children(recursive=True)

    def tell(self, number: int) -> None:
        """A signal to the process that was started."""
        self.popen.send_signal(number)

    def tell_all(self, number: int) -> None:
        """A signal to all of its processes at the same time, as a terminal or a service manager sends it."""
        os.killpg(self.popen.pid, number)

    def ended(self, seconds: float, *, code: int = 0) -> None:
        """Wait for its end."""
        assert self.popen.wait(seconds) == code

    def destroy(self) -> None:
        """Nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@dataclass
class Cluster:
    """Processes, and short words for what tests do to them."""

    folder: Path
    database_url: str
    redis: RedisServer
    servers: Servers = field(default_factory=Servers)
    environ: dict[str, str] = field(default_factory=dict)
    started: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PROMPTMILL_") and not name.endswith("_API_KEY")
        }
        self.environ = {
            **kept,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
            "PROMPTMILL_DATABASE_URL": self.database_url,
            "PROMPTMILL_REDIS_URL": self.redis.url,
            "PROMPTMILL_UPSTREAM_KEY": KEY,
        }
        self.db = Database(self.database_url, pool_size=2)

    # ---------------------------------------------------------------- what it is made of

    def simulator(self, **settings: Any) -> SimulateServer:
        """The rehearsal endpoint, in a thread, and what all processes started from now on call."""
        server = self.servers.start(SimulateServer(SimulateConfig(port=0, **settings)))
        self.environ["PROMPTMILL_UPSTREAM_URL"] = server.url
        return server

    def limits(self, *, rpm: float | None = None, in_flight: int | None = None) -> None:
        """Of the upstream, for the processes started from now on."""
        given = {"PROMPTMILL_RPM": rpm, "PROMPTMILL_MAX_IN_FLIGHT": in_flight}
        self.environ.update({name: str(value) for name, value in given.items() if value is not None})

    def settings(self, **values: Any) -> None:
        """Those that only a file has, for the processes started from now on."""
        path = self.folder / "promptmill.toml"
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
        self.environ["PROMPTMILL_CONFIG"] = str(path)

    def worker(
        self, name: str = "w1", *, slots: int = 1, pool: str = "prefork", queue: str = "drain", app: str = "worker.app"
    ) -> Process:
        """A Celery worker, not ready yet."""
        return self._start(
            name, "-m", "celery", "-A", app, "worker", "-Q", queue, "-c", slots, "-P", pool, "-n", f"{name}@test",
            "--without-mingle", "--without-gossip", "-l", "INFO",
        )  # fmt: skip

    def workers(self, *names: str, **options: Any) -> list[Process]:
        """Several, side by side, all with their drains at work."""
        made = [self.worker(name, **options) for name in names]
        self.until_drains(len(made) * options.get("slots", 1))
        return made

    def maint(self) -> Process:
        """The worker that does the chores."""
        return self.worker("maint", queue="maint")

    def beat(self) -> Process:
        """The clock."""
        return self._start("beat", "-m", "celery", "-A", "worker.app", "beat", "-s", self.folder / "beat-schedule")

    def apis(self, *names: str) -> list[str]:
        """API processes on free ports, side by side; the origins of those, when all of them listen."""
        words = ("-m", "uvicorn", "api.app:create_app", "--factory", "--host", "127.0.0.1", "--port", 0)
        made = [self._start(name, *words, "--no-access-log", "--timeout-graceful-shutdown", 5) for name in names]
        return [until(lambda process=process: _origin(process), what=f"{process.name} listens") for process in made]

    def start_cli(self, *words: object) -> Process:
        """`promptmill WORDS` in the background; its output is in its log."""
        return self._start(f"cli-{words[0]}", "-m", "cli", *words)

    def cli(self, *words: object, seconds: float = 30.0) -> Ended:
        """`promptmill WORDS`."""
        done = subprocess.run(
            [sys.executable, "-m", "cli", *map(str, words)],
            cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        ended = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert KEY not in ended.out + ended.err
        assert "Traceback" not in ended.err, ended.err
        return ended

    def celery(self, *words: object, seconds: float = 30.0) -> str:
        """`celery -A worker.app WORDS`, e.g. `control shutdown`."""
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "worker.app", *map(str, words)],
            cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        return done.stdout.decode() + done.stderr.decode()

    def _start(self, name: str, *words: object) -> Process:
        log_file = self.folder / f"{name}-{len(self.started)}.log"
        with log_file.open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_die_with_the_test,
            )  # fmt: skip
        process = Process(name, popen, log_file)
        self.started.append(process)
        return process

    # ---------------------------------------------------------------- what is to be done, and what was

    def file(self, count: int, *, model: str = "test/plain", first: int = 0) -> Path:
        """So many chats, all different."""
        path = self.folder / f"prompts-{first}-{count}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in chats(count, model=model, first=first)))
        return path

    def submit(self, count: int, *, model: str = "test/plain", first: int = 0, tell: bool = True, **terms: Any) -> str:
        """What `promptmill submit` does, without waiting for a process to start; returns the batch's id."""
        settings = load(self.environ)
        with self.file(count, model=model, first=first).open("rb") as content:
            source = Source(name="prompts.jsonl", chunks=content)
            taken = self.do(take_in(self.db, settings, source, Terms(**terms), clock=time.time))
        if tell:
            dispatcher = Dispatcher(settings.redis_url)
            dispatcher.work_arrived()
            dispatcher.close()
        return taken.batch.public_id

    def issue(self, tickets: int) -> None:
        """Ask for so many drains, whether there is room or not."""
        with Celery(broker=self.redis.url, set_as_current=False) as app:
            for _ in range(tickets):
                app.send_task(DRAIN_TASK, queue=DRAIN_QUEUE)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop that the servers are in."""
        return self.servers._do(work)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Straight from the database; promptmill_ goes without saying."""
        for table in _OURS:
            for before in ("FROM", "JOIN", "UPDATE"):
                query = query.replace(f"{before} {table}", f"{before} promptmill_{table}")

        async def ask() -> list[tuple[Any, ...]]:
            async with self.db.write() as connection:
                found = await connection.execute(sa.text(query))
                return [tuple(row) for row in found] if found.returns_rows else []

        return self.do(ask())

    def one(self, query: str) -> Any:
        """A single value."""
        ((value,),) = self.rows(query)
        return value

    def done(self) -> int:
        """Results so far."""
        return int(self.one("SELECT count(*) FROM results"))

    def running(self) -> int:
        """Jobs in workers' hands."""
        return int(self.one("SELECT count(*) FROM jobs WHERE state = 'running'"))

    def drains(self) -> int:
        """Drains that have not stopped."""
        return int(self.one("SELECT count(*) FROM workers WHERE stopped_at IS NULL"))

    def worker_id(self, process: Process) -> int:
        """The id under which its one drain is at work."""
        pids = [child.pid for child in process.children()] or [process.popen.pid]
        query = f"SELECT id FROM workers WHERE stopped_at IS NULL AND split_part(name, ':', 2) = '{pids[0]}'"
        ((found,),) = until(lambda: self.rows(query), what=f"a drain of {process.name}")
        return int(found)

    def tickets(self) -> int:
        """Tickets that nobody has taken."""
        return int(self.redis.admin().llen("drain"))

    def slots(self) -> int:
        """Slots that workers have announced."""
        return sum(int(member.rpartition("=")[2]) for member in self.redis.admin().zrange(SLOTS_KEY, 0, -1))

    def until_drains(self, count: int, seconds: float = 30.0) -> None:
        """Wait until so many are at work."""
        until(lambda: self.drains() >= count, seconds, f"{count} drains")

    def until_done(self, count: int, seconds: float = 30.0) -> None:
        """Wait until there are so many results."""
        until(lambda: self.done() >= count, seconds, f"{count} results")

    def until_finished(self, seconds: float = 30.0) -> None:
        """Wait until no batch is under way."""
        until(
            lambda: self.one("SELECT count(*) FROM batches WHERE finished_at IS NULL") == 0, seconds, "batches finished"
        )

    def ledger(self) -> dict[str, int]:
        """How upstream calls ended."""
        return dict(self.rows("SELECT outcome, count(*) FROM attempts GROUP BY 1"))

    def check_each_job_has_one_result(self, total: int) -> None:
        """None lost, none doubled, and the batches' counts say the same."""
        assert self.rows(
            "SELECT count(*), count(DISTINCT (batch_id, position)), count(DISTINCT job_id) FROM results"
        ) == [(total, total, total)]
        assert self.one("SELECT count(*) FROM jobs") == 0
        assert self.one("SELECT sum(succeeded) FROM batches") == total
        assert self.one("SELECT count(*) FROM results WHERE state <> 'succeeded'") == 0

    def check_all_still_run(self) -> None:
        """No process has exited."""
        gone = [process.name for process in self.started if not process.is_running]
        assert not gone, f"{gone} exited"

    def logs(self, names: Iterable[str] | None = None) -> str:
        """What these processes, or all, have said."""
        return "".join(p.log for p in self.started if names is None or p.name in names)

    def close(self) -> None:
        for process in self.started:
            process.destroy()
        for process in self.started:  # pytest shows it where the test failed
            lines = process.log.splitlines()
            print(f"---- {process.name}: {len(lines)} lines", *lines[-_LOG_LINES_SHOWN:], sep="\n")
        self.do(self.db.aclose())
        self.servers.close()


def _origin(process: Process) -> str:
    found = re.search(r"running on (http://127\.0\.0\.1:\d+)", process.log)
    return found[1] if found else ""


_LIBC = ctypes.CDLL(None)


def _die_with_the_test() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
