"""Rings for the workers: a hint for the drains that run, and in the cluster a ticket for one that may have to start."""

import asyncio
from typing import TYPE_CHECKING, Final

from promptmill.hints import Hints

if TYPE_CHECKING:
    from promptmill.dispatch import Dispatcher

#: Tickets are issued at most this often: they say only that there is work.
_BETWEEN_TICKETS_SECONDS: Final = 0.25


class Bell:
    """One per process. Ringing costs a hint; the ticket goes out beside it, in a thread, since Celery would block."""

    def __init__(self, hints: Hints, redis_url: str | None) -> None:
        self._hints = hints
        self._dispatcher = _dispatcher(redis_url) if redis_url else None
        self._wanted = False
        self._issuing: asyncio.Task[None] | None = None

    async def ring(self) -> None:
        """There may be ready jobs."""
        await self._hints.work_arrived()
        if self._dispatcher is None:
            return
        self._wanted = True
        if self._issuing is None:
            self._issuing = asyncio.create_task(self._issue(self._dispatcher), name="promptmill-tickets")

    async def aclose(self) -> None:
        """Issue what is asked for, and close the connections."""
        if self._issuing is not None:
            await self._issuing
        if self._dispatcher is not None:
            await asyncio.to_thread(self._dispatcher.close)

    async def _issue(self, dispatcher: "Dispatcher") -> None:
        try:
            while self._wanted:
                self._wanted = False
                await asyncio.to_thread(dispatcher.work_arrived)
                if self._wanted:
                    await asyncio.sleep(_BETWEEN_TICKETS_SECONDS)
        finally:
            self._issuing = None


def _dispatcher(redis_url: str) -> "Dispatcher":
    from promptmill.dispatch import Dispatcher  # noqa: PLC0415 - Celery is large, and only a cluster has a use for it

    return Dispatcher(redis_url)
