"""Endings on their way to the database, in the order they came: at once after a silence, else some time's together.

A write that fails because the database is away is tried again until it is back: the answers were paid for. Meanwhile
nothing new is claimed either (that needs the same database), so what waits here is bounded by the calls in flight.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import State
from promptmill.outcome import Failure, Reason
from promptmill.store.records import Ending, add_tally, record
from promptmill.store.sums import ADD_SECONDS, Tally

log = logging.getLogger("promptmill.worker")

#: Writes are at least this far apart: who works much writes many endings together. After a longer silence an ending
#: waits for nothing.
GATHER_SECONDS: Final = 0.1
#: More than this are written at once.
ROWS_AT_ONCE: Final = 500

_RETRY_SECONDS: Final = (0.1, 0.3, 1.0, 2.0, 5.0)

#: SQLSTATEs. 08: connection; 25P03: we stood still in a transaction; 40: deadlock; 53: out of connections, memory or
#: disk; 55P03: locked by others; 57: shutdown, crash, starting up, statement cancelled.
_LATER_STATES: Final = ("08", "25P03", "40", "53", "55P03", "57")


def is_database_away(error: BaseException) -> bool:
    """Is this the database being unreachable, restarting, or busy with others, so that the same will do later?"""
    if isinstance(error, OSError):
        return True
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    # What COPY raises comes as the driver raised it, everything else wrapped.
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
    if code:
        return code.startswith(_LATER_STATES)
    # Without a code it is the driver that speaks, of a connection that broke under its hands.
    return isinstance(error, sa.exc.InterfaceError | sa.exc.InternalError) or (
        isinstance(error, sa.exc.DBAPIError) and "database is locked" in str(error.orig)
    )


def words_for(error: BaseException) -> str:
    """What the database, or the way to it, says; in one line."""
    said = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return said or type(error).__name__


class Recorder:
    """Takes endings one at a time, writes them many at a time."""

    def __init__(
        self, db: Database, *, worker_id: int, clock: Callable[[], float], written: Callable[[Sequence[Ending]], None]
    ) -> None:
        self._db = db
        self._worker_id = worker_id
        self._clock = clock
        self._written = written
        self._waiting: list[Ending] = []
        self._in_hand: Sequence[Ending] = ()  # being written
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False
        self._tally = Tally()
        self._wrote_at = float("-inf")  # on the loop's clock
        self._task = asyncio.create_task(self._run(), name="promptmill-recorder")

    @property
    def backlog(self) -> int:
        """Endings not written yet; those that are just being written are among them."""
        return len(self._waiting) + len(self._in_hand)

    @property
    def waiting(self) -> int:
        """Endings that nobody writes yet: those that `hurry` could help."""
        return len(self._waiting)

    def job_ids(self) -> set[int]:
        """The jobs of these."""
        return {ending.job.job_id for ending in (*self._in_hand, *self._waiting)}

    def put(self, ending: Ending) -> None:
        """Write this soon."""
        self._waiting.append(ending)
        self._some.set()
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._full.set()

    def hurry(self) -> None:
        """Write what there is: somebody waits for it."""
        if self._waiting:
            self._full.set()

    async def close(self) -> None:
        """Write what is left and end. Raises what made writing impossible."""
        self._closing = True
        self._some.set()
        self._full.set()
        await self._task
        await self._add_up()

    def check(self) -> None:
        """Raise what made writing impossible, if anything did."""
        if self._task.done() and not self._closing:
            self._task.result()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not (self._closing and not self._waiting):
            await self._wait_for_some()
            gather_seconds = self._wrote_at + GATHER_SECONDS - loop.time()
            if gather_seconds > 0 and not self._closing:
                with suppress(TimeoutError):  # the usual case: a moment has passed, write what there is
                    await asyncio.wait_for(self._full.wait(), gather_seconds)
            self._full.clear()
            endings, self._waiting = self._waiting[:ROWS_AT_ONCE], self._waiting[ROWS_AT_ONCE:]
            if self._waiting:
                self._full.set()
            elif not self._closing:
                self._some.clear()
            if endings:
                self._in_hand = endings
                written = await self._write(endings)
                self._in_hand = ()
                self._wrote_at = loop.time()
                self._written(written)

    async def _wait_for_some(self) -> None:
        """Until there is an ending; what was not added to the ledger's sums is added when none comes."""
        while True:
            try:
                async with asyncio.timeout(ADD_SECONDS if self._tally.calls else None):
                    await self._some.wait()
                    return
            except TimeoutError:
                await self._add_up()

    async def _add_up(self) -> None:
        try:
            await add_tally(self._db, self._tally, now=self._clock())
        except Exception as error:
            if not is_database_away(error):
                raise
            log.warning("the sums wait, the database is away (%s)", words_for(error))

    async def _write(self, endings: Sequence[Ending]) -> Sequence[Ending]:
        """Returns them as they were written: an answer that cannot be stored becomes a failure."""
        tries = 0
        while True:
            try:
                await record(self._db, worker_id=self._worker_id, endings=endings, now=self._clock(), tally=self._tally)
            except Exception as error:
                if is_database_away(error):
                    pause = _RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)]
                    log.warning(
                        "the database is away (%s); %d answers wait, next try in %.1f s",
                        words_for(error), self.backlog, pause,
                    )  # fmt: skip
                    tries += 1
                    await asyncio.sleep(pause)
                    continue
                if len(endings) > 1:
                    # One of them cannot be stored: find it, so that it does not take the others with it.
                    middle = len(endings) // 2
                    return [*await self._write(endings[:middle]), *await self._write(endings[middle:])]
                ending = endings[0]
                if isinstance(ending.outcome, Failure) and ending.outcome.reason is Reason.NOT_RECORDED:
                    raise
                log.exception("job %d: its answer cannot be stored", ending.job.job_id)
                failure = Failure(
                    Reason.NOT_RECORDED, f"the answer cannot be stored: {type(error).__name__}", ending.outcome.status
                )
                endings = [replace(ending, state=State.FAILED, outcome=failure, not_before=None)]
                continue
            return endings
