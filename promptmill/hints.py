"""Hints push, polling is the truth. New work wakes drains, and a finished job wakes whoever waits for it: at once where
a hint arrives, within one polling interval where it is lost. Nothing may rely on one.

This is the embedded mode's: one process, plain calls. The cluster's, through Redis, is `redis_hints`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

#: Redis channel of hints that there may be new work.
WORK_CHANNEL: Final = "promptmill:hint:work"
#: (batch id, position): what names a job for good, whichever table it is in.
JobKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a job's answer that is still coming: those from `offset` on. The whole is the job's result later, where
    `epoch` is the attempt that brought it; what another attempt said before it is part of nothing."""

    job: JobKey
    epoch: int
    offset: int
    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """What to call. All are quick and raise nothing; None: not wanted."""

    work: Callable[[], None] | None = None
    #: An empty sequence means: hints may have been lost, look at everything.
    finished: Callable[[Sequence[JobKey]], None] | None = None
    piece: Callable[[Piece], None] | None = None


class Hints(Protocol):
    """Says and hears what happens. Saying never raises and never waits for those who listen."""

    async def work_arrived(self) -> None:
        """There may be ready jobs."""

    async def finished(self, jobs: Sequence[JobKey]) -> None:
        """The results of these jobs are in the database."""

    async def piece(self, piece: Piece) -> None:
        """A part of an answer, for whoever waits for it."""

    def listening(self, listener: Listener) -> AbstractAsyncContextManager[None]:
        """While it is entered, `listener` hears."""

    async def aclose(self) -> None:
        """Close connections."""


class LocalHints:
    """Hints within one process and one event loop."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    async def work_arrived(self) -> None:
        """There may be ready jobs."""
        for listener in self._listeners:
            if listener.work is not None:
                listener.work()

    async def finished(self, jobs: Sequence[JobKey]) -> None:
        """The results of these jobs are in the database."""
        for listener in self._listeners:
            if listener.finished is not None:
                listener.finished(jobs)

    async def piece(self, piece: Piece) -> None:
        """A part of an answer, for whoever waits for it."""
        for listener in self._listeners:
            if listener.piece is not None:
                listener.piece(piece)

    @asynccontextmanager
    async def listening(self, listener: Listener) -> AsyncIterator[None]:
        """While it is entered, `listener` hears."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def aclose(self) -> None:
        """There is nothing to close."""
