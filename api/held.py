"""The requests that this process holds, and those of others that were left."""

import asyncio
from typing import Final

from promptmill.engine import Database
from promptmill.hints import JobKey
from promptmill.store import held

#: A client that gave up may be back before its leaving was noticed (behind a proxy, say): for so long it is expected.
_NOTICE_SECONDS: Final = 0.3
_NOTICE_STEP_SECONDS: Final = 0.1


class HeldBook:
    """One per process. What is answered is struck off now and then, many at a time."""

    def __init__(self, db: Database, holder: str) -> None:
        self._db = db
        self._holder = holder
        self._answered: list[int] = []

    async def taken_up(self, *, tenant_id: int, fingerprint: str, now: float) -> tuple[int, JobKey] | None:
        """(id, job) of an equal request that was left, for a caller who says that it is asking again."""
        waited = 0.0
        while True:
            found = await held.take_up(
                self._db, tenant_id=tenant_id, fingerprint=fingerprint, holder=self._holder, now=now + waited
            )
            if found is not None or waited >= _NOTICE_SECONDS:
                return found
            await asyncio.sleep(_NOTICE_STEP_SECONDS)
            waited += _NOTICE_STEP_SECONDS

    async def left(self, held_id: int, *, now: float) -> None:
        """Its caller went away."""
        await held.left(self._db, held_id, now=now)

    def answered(self, held_id: int) -> None:
        """Its caller has its answer."""
        self._answered.append(held_id)

    async def write(self, *, now: float) -> None:
        """Say that this process lives, and strike off what is answered."""
        await held.alive(self._db, self._holder, now=now)
        await self._strike_off()

    async def aclose(self) -> None:
        """Hold nothing any more."""
        await self._strike_off()
        await held.gone(self._db, self._holder)

    async def _strike_off(self) -> None:
        done, self._answered = self._answered, []
        if done:
            await held.answered(self._db, done)
