"""Schedules fire here: beside every drain that works on whatever comes, and where the clock asks (`tasks`).

A look decides what is due and begins to carry it out, a few fires at a time. It has a task of its own, and every long
piece of work in it gives others their turn, so a file of a million lines does not hold up its drain's claims. What one
process leaves half done, another finds when nobody has said for a while that it is held.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import PromptmillError
from promptmill.intake.admit import read_in
from promptmill.intake.fire import carry_out
from promptmill.settings import Settings
from promptmill.store import admissions, deciding, fires, schedules
from worker.recorder import is_database_away, words_for

log = logging.getLogger("promptmill.worker")

#: Schedules are looked at this often.
LOOK_SECONDS: Final = 0.5
#: After a look that broke: the database may be away, which its drain says.
AWAY_SECONDS: Final = 2.0
#: A schedule that cannot be decided (its zone is not known any more) is looked at again after this.
PUZZLED_SECONDS: Final = 60.0
#: Fires that are carried out at once: one waits for the database while another is filled in.
AT_ONCE: Final = 2


@asynccontextmanager
async def firing(
    db: Database,
    settings: Settings,
    *,
    owner: str,
    ring: Callable[[], Awaitable[None]],
    clock: Callable[[], float],
) -> AsyncIterator[None]:
    """While it is entered, schedules fire."""
    task = asyncio.create_task(Fires(db, settings, owner=owner, ring=ring, clock=clock).run(), name="promptmill-fires")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Fires:
    """One worker's part in firing everybody's schedules."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        owner: str,
        ring: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`owner` is the worker's name; `ring` says that there is work."""
        self._db = db
        self._settings = settings
        self._holder = f"{owner}:{secrets.token_hex(4)}"  # a name may come again
        self._ring = ring
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._at_work: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look, again and again, until it is cancelled; then what is held is left to others at once."""
        try:
            while True:
                wait = await self._looked()
                await asyncio.sleep(wait)
        finally:
            if await self._drop():
                with suppress(OSError, sa.exc.SQLAlchemyError):  # then others wait until the lease has run out
                    await fires.release(self._db, holder=self._holder)
                    await admissions.release_all(self._db, holder=self._holder)

    async def all_due(self) -> None:
        """Fire what is due now, and see it through."""
        try:
            await self.look()
            while self._at_work:
                await asyncio.wait(self._at_work.values())
        finally:
            await self._drop()

    async def look(self) -> None:
        """Decide what is due, and begin to carry out what nobody holds."""
        now = self._clock()
        if not await deciding.is_anything_due(self._db, now=now):
            return
        for schedule_id in await deciding.to_decide(self._db, now=now):
            await self._decide(schedule_id, now)
        for fire_id in await fires.left(self._db, now=now):
            self._begin("fire", fire_id, self._carry_out)
        for batch_id in await admissions.left(self._db, now=now, made_by_schedules=True):
            self._begin("batch", batch_id, self._read_in)

    async def _looked(self) -> float:
        """Look; returns for how many seconds to wait."""
        try:
            await self.look()
        except Exception as error:
            if not is_database_away(error):  # its drain says that it is
                log.exception("schedules could not be looked at; they are looked at again")
            return AWAY_SECONDS
        return LOOK_SECONDS

    async def _decide(self, schedule_id: int, now: float) -> None:
        try:
            await deciding.decide(self._db, schedule_id, now=now)
        except (OSError, sa.exc.SQLAlchemyError):
            raise
        except Exception as error:
            # One schedule must not keep the others from firing. What is known to go wrong needs no stack.
            stack = None if isinstance(error, PromptmillError) else error
            log.error("schedule %d cannot be decided: %s", schedule_id, error, exc_info=stack)  # noqa: TRY400
            await schedules.postpone(self._db, schedule_id, until=now + PUZZLED_SECONDS)

    def _begin(self, what: str, number: int, work: Callable[[int], Awaitable[None]]) -> None:
        if (what, number) not in self._at_work:
            task = asyncio.create_task(self._in_turn(what, number, work), name=f"promptmill-{what}-{number}")
            self._at_work[what, number] = task
            task.add_done_callback(lambda _: self._at_work.pop((what, number), None))

    async def _in_turn(self, what: str, number: int, work: Callable[[int], Awaitable[None]]) -> None:
        try:
            async with self._turns:
                await work(number)
        except Exception as error:
            # It stays held for a while: whoever takes it over should not break on it at once, again and again.
            if is_database_away(error):
                log.warning("%s %d of a schedule is left for later: %s", what, number, words_for(error))
            else:
                log.exception("%s %d of a schedule broke; it will be tried again", what, number)

    async def _carry_out(self, fire_id: int) -> None:
        batch_id = await carry_out(self._db, self._settings, fire_id, holder=self._holder, clock=self._clock)
        if batch_id is not None:
            self._begin("batch", batch_id, self._read_in)

    async def _read_in(self, batch_id: int) -> None:
        if await read_in(self._db, self._settings, batch_id, holder=self._holder, clock=self._clock):
            await self._ring()

    async def _drop(self) -> bool:
        """Leave what is under way; was there any?"""
        tasks = list(self._at_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return bool(tasks)
