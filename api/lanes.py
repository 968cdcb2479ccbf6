"""Lanes as callers meet them: one that is halted takes no call until somebody resumes it, so nobody is kept waiting."""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from api.errors import ApiError
from promptmill.engine import Database
from promptmill.job import LaneState
from promptmill.store import lanes
from promptmill.store.lanes import LaneRow

if TYPE_CHECKING:
    from api.state import House

#: That a lane was halted is known so much later.
FRESH_SECONDS: Final = 0.5
_FIRST_REFUSAL: Final = 400


class LaneBook:
    """What this process knows of the lanes; all are read together, at most every moment."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rows: dict[int, LaneRow] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def halted(self, lane_id: int) -> LaneRow | None:
        """The lane, where it is halted, as far as is known: what was read a moment ago is read again beside."""
        if lane_id not in self._rows:
            await self._read()
        elif time.monotonic() - self._read_at >= FRESH_SECONDS and self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._was_read)
        row = self._rows.get(lane_id)
        return row if row is not None and row.state is LaneState.HALTED else None

    async def aclose(self) -> None:
        """Let nothing be read any more."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _read(self) -> None:
        self._rows = {row.id: row for row in await lanes.read(self._db)}
        self._read_at = time.monotonic()

    def _was_read(self, task: "asyncio.Task[None]") -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # the database is away: what was known goes on being believed


async def refuse_halted(house: "House", lane_id: int) -> None:
    """Raises ApiError, with the upstream's own status and reason, where nothing would be sent."""
    row = await house.lanes.halted(lane_id)
    if row is not None:
        raise refusal(row)


def refusal(row: LaneRow) -> ApiError:
    """What is told to somebody who wants an answer of a halted lane."""
    status = row.halt_status if row.halt_status is not None and row.halt_status >= _FIRST_REFUSAL else 503
    return ApiError(
        status,
        f"{row.model} is halted since its upstream refused: {(row.reason or 'no reason was given').rstrip('.')}. "
        "When that is mended: promptmill resume.",
        code="lane_halted",
        headers={"x-should-retry": "false"},
    )
