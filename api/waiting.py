"""Those who wait for jobs to end: woken by hints, and by a look at the database now and then, since hints may be lost.

One look serves all: what is asked for is collected, and read batch by batch.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.hints import Hints, JobKey, Listener, Piece
from promptmill.store import results
from promptmill.store.results import Result

#: Without a hint, an answer is found after this long.
POLL_SECONDS: Final = 1.0
#: Jobs that are read with one statement.
_AT_ONCE: Final = 500
#: A job may be finished before the one who submitted it has begun to wait: so many are remembered.
_RECENT_AT_MOST: Final = 2_000


class Waiting:
    """One per process."""

    def __init__(self, db: Database, hints: Hints) -> None:
        self._db = db
        self._hints = hints
        self._results: dict[JobKey, set[asyncio.Future[Result]]] = defaultdict(set)
        self._pieces: dict[JobKey, set[asyncio.Queue[Piece]]] = defaultdict(set)
        self._batches: dict[int, set[asyncio.Event]] = defaultdict(set)
        self._look_at: set[JobKey] = set()
        self._recent: dict[JobKey, None] = {}  # finished a moment ago, the oldest first
        self._look_at_all = False
        self._stopping = False
        self._something = asyncio.Event()

    @property
    def count(self) -> int:
        """How many wait for the answers of jobs."""
        return sum(len(futures) for futures in self._results.values())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it is entered, whoever waits is served."""
        listener = Listener(finished=self._finished, piece=self._piece)
        async with self._hints.listening(listener):
            task = asyncio.create_task(self._serve(), name="promptmill-waiting")
            try:
                yield
            finally:
                self._stopping = True  # never cancelled: it may be speaking to the database
                self._something.set()
                await task

    async def result(self, key: JobKey) -> Result:
        """The job's result, whenever it is there. Cancel it to wait no longer."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._results[key].add(future)
        if key in self._recent:
            self.look(key)  # it was finished before we listened
        try:
            return await future
        finally:
            self._results[key].discard(future)
            if not self._results[key]:
                del self._results[key]

    async def within(self, key: JobKey, seconds: float, *, unless: asyncio.Event) -> None:
        """Until the job has its result, for so long, or until `unless` is set."""
        ends = [asyncio.create_task(self.result(key)), asyncio.create_task(unless.wait())]
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    def look(self, key: JobKey) -> None:
        """It may be there already."""
        self._look_at.add(key)
        self._something.set()

    @contextmanager
    def pieces(self, key: JobKey) -> Iterator["asyncio.Queue[Piece]"]:
        """The pieces of the job's answer, from now on."""
        queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._pieces[key].add(queue)
        try:
            yield queue
        finally:
            self._pieces[key].discard(queue)
            if not self._pieces[key]:
                del self._pieces[key]

    @contextmanager
    def batch(self, batch_id: int) -> Iterator[asyncio.Event]:
        """An event that is set whenever jobs of the batch have finished; clear it before looking."""
        event = asyncio.Event()
        self._batches[batch_id].add(event)
        try:
            yield event
        finally:
            self._batches[batch_id].discard(event)
            if not self._batches[batch_id]:
                del self._batches[batch_id]

    def _finished(self, keys: Sequence[JobKey]) -> None:
        if not keys:
            self._look_at_all = True
            self._something.set()
            for events in self._batches.values():
                for event in events:
                    event.set()
            return
        self._recent.update(dict.fromkeys(keys))
        while len(self._recent) > _RECENT_AT_MOST:
            del self._recent[next(iter(self._recent))]
        if self._results:
            wanted = [key for key in keys if key in self._results]
            if wanted:
                self._look_at.update(wanted)
                self._something.set()
        if self._batches:
            for batch_id in {key[0] for key in keys}:
                for event in self._batches.get(batch_id, ()):
                    event.set()

    def _piece(self, piece: Piece) -> None:
        for queue in self._pieces.get(piece.job, ()):
            queue.put_nowait(piece)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while not self._stopping:
            with suppress(TimeoutError):  # time for a look without a hint
                async with asyncio.timeout(max(0.0, looked_at + POLL_SECONDS - loop.time())):
                    await self._something.wait()
            self._something.clear()
            everything = self._look_at_all or loop.time() - looked_at >= POLL_SECONDS
            if everything:
                looked_at = loop.time()
                self._look_at_all = False
            keys = list(self._results) if everything else [key for key in self._look_at if key in self._results]
            self._look_at.clear()
            if keys:
                await self._look(keys)

    async def _look(self, keys: Sequence[JobKey]) -> None:
        positions: dict[int, list[int]] = defaultdict(list)
        for batch_id, position in keys:
            positions[batch_id].append(position)
        for batch_id, wanted in positions.items():
            for start in range(0, len(wanted), _AT_ONCE):
                try:
                    found = await results.of_jobs(self._db, batch_id, wanted[start : start + _AT_ONCE])
                except (OSError, sa.exc.SQLAlchemyError):
                    return  # the database is away: the next look, in a moment, is for all of them
                for result in found:
                    for future in self._results.get((batch_id, result.position), ()):
                        if not future.done():
                            future.set_result(result)
