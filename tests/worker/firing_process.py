"""A process that looks for schedules that are due whenever it is told the time: a drain's part in it, or beat's.

It is started from a server that forks (`multiprocessing`), so starting one takes milliseconds, and is killed with
SIGKILL: nothing of it is tidied up.
"""

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Final

from promptmill.engine import Database
from promptmill.settings import load
from worker.fires import Fires
from worker.upkeep import Upkeep

#: What one look may take on a busy machine.
_PATIENCE_SECONDS: Final = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


class FiringProcess:
    """One process, as whoever kills it sees it."""

    def __init__(self, name: str, *, database_url: str, is_beat: bool) -> None:
        self.name, self.is_beat = name, is_beat
        self._channel, theirs = _context.Pipe()
        self._process = _context.Process(target=_live, args=(name, database_url, is_beat, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, now: float) -> None:
        """It is this late: look."""
        self._channel.send(now)

    def done(self, seconds: float = _PATIENCE_SECONDS) -> bool:
        """Has it done all that the look was for? Waits for so long."""
        if not self._channel.poll(seconds):
            return False
        said = self._channel.recv()
        assert said == "done", said
        return True

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self._process.kill()
        self._process.join()
        self._channel.close()


def _live(name: str, database_url: str, is_beat: bool, channel: Connection) -> None:
    asyncio.run(_Looking(name, database_url, channel).go_on(is_beat=is_beat))


class _Looking:
    def __init__(self, name: str, database_url: str, channel: Connection) -> None:
        self._name = name
        self._db = Database(database_url)
        self._channel = channel
        self._now = 0.0
        self._fires = self._new_fires()

    def _new_fires(self) -> Fires:
        return Fires(self._db, load({}), owner=self._name, ring=_nobody, clock=lambda: self._now)

    async def go_on(self, *, is_beat: bool) -> None:
        """Until somebody kills it."""
        while True:
            self._now = await asyncio.to_thread(self._channel.recv)
            began = time.monotonic()
            try:
                await (self._as_beat_asks() if is_beat else self._fires.all_due())
            except Exception as error:  # noqa: BLE001 - the test has to see it
                self._channel.send(f"{error!r} after {time.monotonic() - began:.1f} s")
            else:
                self._channel.send("done")

    async def _as_beat_asks(self) -> None:
        """The body of the task `promptmill.upkeep`, but for its tickets."""
        await Upkeep(self._db, clock=lambda: self._now, owner=self._name).do_all()
        await self._new_fires().all_due()


async def _nobody() -> None:
    """There is no drain to be told of work."""
