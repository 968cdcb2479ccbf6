"""What every API process sees to now and then: that others know that it lives, and that what is over is put away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import sqlalchemy as sa

from api.state import House
from promptmill.errors import StoreError
from promptmill.store import batches, control, held, idempotency, upkeep
from promptmill.store.purge import purge_files

log = logging.getLogger("promptmill.api")

#: Chores that one process does for all.
CHORES_SECONDS: Final = 60.0
#: So often is looked for batches that are to be cancelled.
CANCELLING_SECONDS: Final = 2.0
_LEASE: Final = "api-chores"
_AWAY: Final = (OSError, sa.exc.SQLAlchemyError, StoreError)


@asynccontextmanager
async def kept(house: House) -> AsyncIterator[None]:
    """While it is entered, the house is kept."""
    with suppress(*_AWAY):  # it serves what it can: /healthz, and /readyz says what is missing
        await house.held.write(now=house.clock())
    over = asyncio.Event()
    tasks = [
        asyncio.create_task(_keep(house, over), name="promptmill-housekeeping"),
        asyncio.create_task(_finish_cancelling(house, over), name="promptmill-cancelling"),
    ]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*tasks)
        with suppress(*_AWAY):  # the database is away: the lease runs out by itself
            await house.held.aclose()


async def _keep(house: House, over: asyncio.Event) -> None:
    chores_at = float("-inf")
    while not over.is_set():
        with suppress(TimeoutError):  # the usual case: it goes on
            await asyncio.wait_for(over.wait(), held.SAY_SECONDS)
            return
        now = house.clock()
        try:
            await house.held.write(now=now)
            if now - chores_at >= CHORES_SECONDS:
                chores_at = now
                if await upkeep.take_lease(house.db, name=_LEASE, owner=house.holder, seconds=CHORES_SECONDS, now=now):
                    await _chores(house, now)
        except _AWAY as error:
            log.warning("housekeeping waits, the database is away (%s)", type(error).__name__)


async def _finish_cancelling(house: House, over: asyncio.Event) -> None:
    """Where no worker runs that would: batches that are cancelling come to their end all the same."""
    while not over.is_set():
        with suppress(TimeoutError):  # the usual case: it goes on
            await asyncio.wait_for(over.wait(), CANCELLING_SECONDS)
            return
        try:
            for batch_id in await control.cancelling(house.db):
                await control.finish_cancelling(house.db, batch_id=batch_id, now=house.clock())
        except _AWAY as error:
            log.warning("cancelling waits, the database is away (%s)", type(error).__name__)


async def _chores(house: House, now: float) -> None:
    await idempotency.purge(house.db, now=now)
    await held.purge(house.db, now=now)
    await batches.seal_abandoned(house.db, now=now)
    await purge_files(house.db, now)
