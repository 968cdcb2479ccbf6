"""The requests that this process holds, and those of others that were left."""

import asyncio
from collections.abc import Callable
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

    async def taken_up(
        self, *, tenant_id: int, fingerprint: str, clock: Callable[[], float]
    ) -> tuple[int, JobKey] | None:
        """(id, job) of an equal request that was left, for a caller who says that it is asking again.

        Where another process holds an equal one, it is waited for to say that it lives: it may have died a moment ago,
        and its caller be this one.
        """
        began = clock()
        others: dict[str, float] | None = None
        while True:
            found = await held.take_up(
                self._db, tenant_id=tenant_id, fingerprint=fingerprint, holder=self._holder, now=clock()
            )
            if found is not None:
                return found
            if clock() - began >= _NOTICE_SECONDS:
                seen = await held.holders(self._db, tenant_id=tenant_id, fingerprint=fingerprint, now=clock())
                seen.pop(self._holder, None)
                others = seen if others is None else others
                silent = [name for name, until in seen.items() if others.get(name) == until]
                if not silent or clock() - began >= held.HOLDER_SECONDS + _NOTICE_SECONDS:
                    return None
            await asyncio.sleep(_NOTICE_STEP_SECONDS)

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
