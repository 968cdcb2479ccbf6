"""What is to be expected of the batch that is worked on, looked up now and then while it is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import sqlalchemy as sa

from promptmill import outlook
from promptmill.engine import Database
from promptmill.outlook import Outlook
from promptmill.settings import Settings
from promptmill.store import batches

log = logging.getLogger("promptmill.cli")

#: A few statements, so seldom that nobody feels them.
LOOK_SECONDS: Final = 2.0


class Forecast:
    """The last look."""

    def __init__(self, db: Database, settings: Settings, batch_id: int, clock: Callable[[], float]) -> None:
        self.outlook: Outlook | None = None
        self.clock = clock
        self._db = db
        self._settings = settings
        self._batch_id = batch_id

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """While it is entered it is looked."""
        task = asyncio.create_task(self._keep_looking(), name="promptmill-forecast")
        try:
            yield
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(ended, Exception):
                log.warning("what is to be expected could not be looked up: %s", ended)

    async def look(self) -> None:
        """Look now."""
        row = await batches.get(self._db, self._batch_id)
        found = await outlook.of_batches(self._db, self._settings, [row], now=self.clock())
        self.outlook = found.get(row.id)

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self.look()
            except (OSError, sa.exc.DBAPIError, asyncpg.PostgresError) as error:
                self.outlook = None  # the work waits for the database too, and says so
                log.debug("no look at what is to be expected: %s", error)
            await asyncio.sleep(LOOK_SECONDS)
