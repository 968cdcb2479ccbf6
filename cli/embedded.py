"""The embedded mode: one process with a database file is intake, worker and reader in one.

One process at a time may work on a SQLite file: limits are counted in the process, so two would exceed them together.
The lock is the operating system's and ends with the process, however it ends; so whoever holds it knows that jobs still
marked as running belong to a dead worker, and gives them back at once.
"""

import asyncio
import fcntl
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
import sqlalchemy as sa

from promptmill import schema
from promptmill.engine import Database
from promptmill.errors import StoreError
from promptmill.jsonl import open_input
from promptmill.store import workers

T = TypeVar("T")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database, with its tables up to date. Raises SettingsError, StoreError."""
    db = Database(url)
    where = db.url.database if db.is_sqlite else db.url.render_as_string(hide_password=True)
    try:
        try:
            await schema.ensure(db)
        except (OSError, asyncpg.PostgresError, sa.exc.DBAPIError) as error:  # SQLAlchemy hands some on as they are
            words = getattr(error, "strerror", None) or getattr(error, "orig", error)
            raise StoreError(f"cannot open {where}: {words}") from error
        yield db
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        raise StoreError(f"{where}: {error.orig}") from error  # a full disk, a lost server: not ours to mend
    finally:
        await db.aclose()


@contextmanager
def sole_worker(db: Database) -> Iterator[bool]:
    """Be the only process that works on a SQLite file; True where that is so. Raises StoreError when another one is."""
    if not db.is_sqlite or db.url.database is None:
        yield False
        return
    path = Path(f"{db.url.database}.lock")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise StoreError(
                f"{holder} is working on {db.url.database}; wait for it, or give this run a file of its own with --db"
            ) from None
        lock.truncate(0)
        lock.write(f"promptmill (process {os.getpid()})")
        lock.flush()
        yield True


async def take_over(db: Database, *, sole: bool, now: float) -> int:
    """Give back what dead workers held; returns the number of jobs."""
    # The sole one need not ask when the others were last alive; the clock may have been put back since.
    lease_seconds = -math.inf if sole else workers.LEASE_SECONDS
    silent = await workers.silent(db, now=now, lease_seconds=lease_seconds)
    return await workers.reap(db, worker_ids=silent, now=now, lease_seconds=lease_seconds)


def worker_name() -> str:
    """host:pid, for people who look for the process."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def stopping_on_signals(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """SIGINT or SIGTERM once: `first`; again: `second`."""
    loop = asyncio.get_running_loop()
    seen = 0

    def heard() -> None:
        nonlocal seen
        seen += 1
        (first if seen == 1 else second)()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, heard)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class Interrupted(Exception):  # noqa: N818 - reads as what it is
    """SIGINT or SIGTERM came while the input was read."""


class Reading:
    """Hands on what is read until somebody interrupts, also in the middle of waiting for more: standard input may be
    a terminal, and reading it holds the event loop, so that its signal handlers would never run."""

    def __init__(self) -> None:
        self.interrupted = False
        self._waits = False

    def heard(self, *_: object) -> None:
        """A signal."""
        self.interrupted = True
        if self._waits:
            raise Interrupted

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of an input. Raises Interrupted, and UsageError when it cannot be read."""
        with ExitStack() as opened_files:
            content = self._waiting(lambda: opened_files.enter_context(open_input(name)))
            while (chunk := self._waiting(lambda: next(content, None))) is not None:
                yield chunk

    def answer(self, question: str) -> str:
        """A line of standard input, asked for on stderr. Raises Interrupted."""
        print(question, end="", file=sys.stderr, flush=True)
        line: str = self._waiting(sys.stdin.readline)
        return line

    def _waiting(self, read: Callable[[], T]) -> T:
        self._waits = True
        try:
            if self.interrupted:
                raise Interrupted
            return read()
        finally:
            self._waits = False


@contextmanager
def interruptible_reading() -> Iterator[Reading]:
    """While it is entered, SIGINT and SIGTERM end the reading."""
    reading = Reading()
    before = {number: signal.signal(number, reading.heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
