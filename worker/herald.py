"""Says that jobs are finished, to whoever waits for them, without holding up who writes them down."""

import asyncio
from collections.abc import Iterable
from typing import Final

from promptmill.hints import Hints, JobKey

#: One message carries at most so many names.
JOBS_AT_ONCE: Final = 1_000
#: At the end, what could not be said within this time is not said: polling finds it.
CLOSE_SECONDS: Final = 1.0


class Herald:
    """Says in a task of its own what it is told; what gathers while it speaks is said together."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._unsaid: list[JobKey] = []
        self._task: asyncio.Task[None] | None = None

    def finished(self, jobs: Iterable[JobKey]) -> None:
        """The results of these are in the database."""
        self._unsaid.extend(jobs)
        if self._unsaid and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._say(), name="promptmill-herald")

    async def close(self) -> None:
        """Say what is left, if that is quick."""
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _say(self) -> None:
        while self._unsaid:
            jobs, self._unsaid = self._unsaid[:JOBS_AT_ONCE], self._unsaid[JOBS_AT_ONCE:]
            await self._hints.finished(jobs)
