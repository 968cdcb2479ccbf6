"""`promptmill` as people run it: the command line itself, in this process where that will do and in one of its own
where signals are sent; and endpoints in a thread, since the command has a loop of its own."""

import asyncio
import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cli import main as main_module
from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer
from tests.worker.endpoint import Answers, Endpoint, endpoint

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-the-key-that-nobody-may-see"

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 20.0) -> T:
    """Wait for a condition; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)
    return found


def chats(count: int, *, model: str = "test/plain", first: int = 0) -> list[dict[str, Any]]:
    """Bare chat bodies that say "0", "1", … ."""
    return [{"model": model, "messages": [{"role": "user", "content": str(n)}]} for n in range(first, first + count)]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What --json printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        """The last of these."""
        assert self.events[-1]["event"] == "summary"
        return self.events[-1]


@dataclass
class Running:
    """A command in a process of its own."""

    process: "subprocess.Popen[bytes]"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a machine that dies."""
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = 30.0) -> Ended:
        out, err = self.process.communicate(timeout=seconds)
        return Ended(self.process.returncode, out.decode(), (err or b"").decode())


class Servers:
    """A thread with an event loop, and the servers in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers")
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()

    def start(self, server: AbstractAsyncContextManager[T]) -> T:
        return self._do(self._stack.enter_async_context(server))

    def close(self) -> None:
        self._do(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


@dataclass
class Mill:
    """A folder, an environment with nothing of ours in it but a key, and servers that end with the test."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    servers: Servers = field(default_factory=Servers)
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def db(self) -> Path:
        return self.folder / "mill.sqlite3"

    def simulator(self, **settings: Any) -> SimulateServer:
        """The rehearsal endpoint, in a thread; its stats can be read from here."""
        return self.servers.start(SimulateServer(SimulateConfig(port=0, **settings)))

    def endpoint(self, answers: Answers) -> Endpoint:
        """An endpoint that answers as told."""
        return self.servers.start(endpoint(answers))

    def file(self, name: str, lines: Iterable[dict[str, Any] | bytes | str]) -> Path:
        """An input in the folder."""
        path = self.folder / name
        with path.open("wb") as file:
            for line in lines:
                data = json.dumps(line) if isinstance(line, dict) else line
                file.write((data if isinstance(data, bytes) else data.encode()) + b"\n")
        return path

    def run(self, *words: object, stdin: bytes = b"") -> Ended:
        """`promptmill WORDS`, in this process."""
        typed = ["promptmill", *map(str, words)]
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", typed)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as exited:
                main_module.main()
        code = exited.value.code
        said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
        assert KEY not in "".join(said)
        return Ended(code if isinstance(code, int) else 0, *said)

    def start(self, *words: object, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE) -> Running:
        """`promptmill WORDS`, in a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        self.started.append(process)
        return Running(process)

    def work(self, input: object, server: SimulateServer | Endpoint, *words: object, **others: Any) -> Ended:  # noqa: A002 - as in `run`
        """`promptmill run INPUT` into the folder's database."""
        return self.run("run", input, "--db", self.db, "--base-url", server.url, *words, **others)

    def start_work(self, input: object, server: SimulateServer | Endpoint, *words: object, **others: Any) -> Running:  # noqa: A002 - as in `run`
        """The same, in a process of its own."""
        return self.start("run", input, "--db", self.db, "--base-url", server.url, *words, **others)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Straight from the database; promptmill_ goes without saying."""
        for table in ("attempts", "jobs", "results", "batches", "files", "file_parts", "lanes", "workers"):
            query = query.replace(f"FROM {table}", f"FROM promptmill_{table}")
        with contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(query).fetchall()

    def one(self, query: str) -> Any:
        """A single value."""
        ((value,),) = self.rows(query)
        return value

    def count(self, table: str) -> int:
        """Rows of a table."""
        return int(self.one(f"SELECT count(*) FROM promptmill_{table}"))  # noqa: S608 - a name that a test wrote

    def count_done(self) -> int:
        """Results so far; 0 while there is no database."""
        try:
            return self.count("results")
        except sqlite3.OperationalError:
            return 0

    def check_each_job_has_one_result(self, total: int) -> None:
        """None lost, none doubled."""
        assert self.rows("SELECT count(*), count(DISTINCT position), count(DISTINCT job_id) FROM results") == [
            (total, total, total)
        ]
        assert self.count("jobs") == 0

    def check_nobody_sees_the_key(self) -> None:
        """Not in any file that was left behind."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                assert KEY.encode() not in path.read_bytes(), path

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.servers.close()


@contextlib.contextmanager
def new_mill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mill]:
    """A mill in an empty folder."""
    for name in [name for name in os.environ if name.startswith("PROMPTMILL_") or name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROMPTMILL_UPSTREAM_KEY", KEY)
    monkeypatch.chdir(folder)
    mill = Mill(folder, monkeypatch)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield mill
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        mill.close()
