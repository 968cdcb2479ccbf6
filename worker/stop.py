"""How a drain learns that its process is to stop, on every pool of Celery: a pipe made before the fork.

On a warm shutdown a prefork child is told nothing, and a thread cannot take a signal. So the parent makes a pipe at
`worker_init`; when it is told to stop it writes one byte, which nobody ever reads, so the read end stays readable for
all: each drain's loop watches it and sets its stop event. A prefork child takes SIGTERM itself as well (TERM to the
whole group).
"""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import bootsteps, signals


class StopPipe:
    """One per Celery worker process tree. Made in the parent, inherited by its children."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)

    def tell(self) -> None:
        """Everybody stop. Again and again does no harm."""
        with suppress(BlockingIOError):  # it is full of earlier ones
            os.write(self._write_end, b"s")

    @contextmanager
    def heard_by(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
        """Set `stop` when somebody tells, while this is entered."""

        def heard() -> None:
            loop.remove_reader(self._read_end)
            stop.set()

        loop.add_reader(self._read_end, heard)
        try:
            yield
        finally:
            loop.remove_reader(self._read_end)


@contextmanager
def sigterm_heard_by(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """Take SIGTERM, where this is a process's main thread (a prefork child), while this is entered."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


def install(app: Any) -> None:
    """Give the Celery app a stop pipe (`app.stop_pipe`) and tell it on every way to stop."""

    class TellDrains(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
        """`celery control shutdown` sends no signal; it closes the worker's steps."""

        requires = frozenset({"celery.worker.components:Pool"})

        def close(self, _worker: Any) -> None:
            app.stop_pipe.tell()

    def make_pipe(**_: Any) -> None:
        app.stop_pipe = StopPipe()

    def tell(**_: Any) -> None:
        app.stop_pipe.tell()

    app.stop_pipe = None
    app.steps["worker"].add(TellDrains)
    signals.worker_init.connect(make_pipe, weak=False)
    signals.worker_shutting_down.connect(tell, weak=False)
