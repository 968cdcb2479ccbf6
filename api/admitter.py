"""Batches that were created over HTTP are read in here, behind their callers' backs: a few at a time in each process.

A batch belongs to whoever holds it. One whose process died or stopped is taken over by any other within seconds.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from promptmill.engine import Database
from promptmill.intake.admit import read_in
from promptmill.settings import Settings
from promptmill.store import admissions

log = logging.getLogger("promptmill.api")

#: Batches that are read at once: one waits for the database while another is parsed.
AT_ONCE: Final = 2
POLL_SECONDS: Final = 5.0


class Admitter:
    """One per process."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        ring: Callable[[], Awaitable[None]],
        holder: str,
        clock: Callable[[], float],
    ) -> None:
        """`ring` says that there is work; `holder` names this process among those who read batches in."""
        self._db = db
        self._settings = settings
        self._ring = ring
        self._holder = holder
        self._clock = clock
        self._admitting: dict[int, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Task[Any]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it is entered, batches are read in. At its end they are left for others, or for the next start."""
        poll = asyncio.create_task(self._poll(), name="promptmill-admitter")
        try:
            yield
        finally:
            tasks = {poll, *self._admitting.values(), *self._chores}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def admit(self, batch_id: int) -> None:
        """Read this batch in, when its turn comes."""
        if batch_id not in self._admitting:
            task = asyncio.create_task(self._admit(batch_id), name=f"promptmill-admit-{batch_id}")
            self._admitting[batch_id] = task
            task.add_done_callback(lambda _: self._admitting.pop(batch_id, None))

    async def done(self, batch_id: int, *, within_seconds: float) -> None:
        """Wait until the batch is read in or given up, but no longer than this."""
        if task := self._admitting.get(batch_id):
            await asyncio.wait([task], timeout=within_seconds)

    async def chore(self, work: Coroutine[Any, Any, Any], *, within_seconds: float) -> None:
        """Do this, also when it takes longer than its caller waits. Whatever is done here, upkeep would do too."""
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._told)
        await asyncio.wait([task], timeout=within_seconds)

    def _told(self, task: "asyncio.Task[Any]") -> None:
        self._chores.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a chore broke; upkeep will do it", exc_info=task.exception())

    async def _admit(self, batch_id: int) -> None:
        try:
            async with self._turns:
                if await read_in(self._db, self._settings, batch_id, holder=self._holder, clock=self._clock):
                    await self._ring()
        except asyncio.CancelledError:
            with suppress(Exception):  # then it is taken over when nobody has said for a while that it is held
                await admissions.release(self._db, batch_id=batch_id, holder=self._holder)
            raise
        except Exception:
            # Not released: whoever takes it over should not break on it at once, again and again.
            log.exception("batch %d could not be read in; it will be tried again", batch_id)

    async def _poll(self) -> None:
        while True:
            try:
                for batch_id in await admissions.left(self._db, now=self._clock()):
                    self.admit(batch_id)
            except Exception as error:  # noqa: BLE001 - the database is away: the next look finds what this one did not
                log.warning("cannot look for batches to read in (%s)", type(error).__name__)
            await asyncio.sleep(POLL_SECONDS)
