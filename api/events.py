"""A batch as it happens, as server-sent events: its counts when they change, each job when it is finished.

A stream that broke is taken up where it was by `Last-Event-ID`, as browsers do by themselves. What is sent is read from
the database, so the memory that a stream takes does not depend on how fast its reader is.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from api.auth import CallerIs
from api.batches import find
from api.dialects.batches import counts_of, status_of
from api.errors import invalid
from api.openapi import answers
from api.state import House, HouseIs
from promptmill.job import BATCH_FINISHED, job_public_id
from promptmill.store import batches
from promptmill.store.batches import BatchRow
from promptmill.store.finished import FinishedJob, count_until, finished_after

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_COUNTS_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 1.0
_BETWEEN_LOOKS_SECONDS: Final = 0.1
#: Proxies close what is silent for half a minute.
_ALIVE_SECONDS: Final = 15.0
_JOBS_AT_ONCE: Final = 500
_LAST_ID: Final = 2**63 - 1

#: Of each event.
_STREAM: Final = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["counts", "job", "done"]},
        "id": {"type": "string", "description": "Of a `job`: from here the stream can be taken up."},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.get("/{batch_id}/events", responses=answers(_STREAM, 404, content_type="text/event-stream"))
async def events(
    batch_id: str,
    house: HouseIs,
    caller: CallerIs,
    after: Annotated[str | None, Query(description="The id of the last event that was seen.")] = None,
    last_event_id: Annotated[str | None, Header(description="The same, as browsers send it.")] = None,
) -> Response:
    """The batch as it happens: `counts` at once and when they change, `job` for each that is finished (those that were
    before first), `done` when it has ended."""
    row = await find(house, caller, batch_id)
    seen = _seen(last_event_id if after is None else after)
    stream = _events(house, row, row.results_after if seen is None else seen)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )


def _seen(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) > _LAST_ID:
        raise invalid("after must be the id of an event.", param="after")
    return int(text)


async def _events(house: House, row: BatchRow, after: int) -> AsyncIterator[bytes]:
    counts: dict[str, Any] | None = None
    counts_at = said_at = time.monotonic()
    jobs = _Jobs(house, after)
    with house.waiting.batch(row.id) as event:
        while True:
            event.clear()
            row = await batches.get(house.db, row.id)
            ended = row.state in BATCH_FINISHED
            now = time.monotonic()
            fresh = _counts(row)
            if fresh != counts and (counts is None or ended or now - counts_at >= _COUNTS_SECONDS):
                counts, counts_at, said_at = fresh, now, now
                yield _event("counts", counts)
            async for told in jobs.until(row):
                said_at = time.monotonic()
                yield told
            if ended:
                yield _event("done", fresh)
                return
            if house.closing.is_set():
                return  # the reader comes back, to another process or to the next
            if time.monotonic() - said_at >= _ALIVE_SECONDS:
                said_at = time.monotonic()
                yield b": alive\n\n"
            pause = _LOOK_SECONDS if fresh == counts else max(0.0, counts_at + _COUNTS_SECONDS - time.monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await event.wait()
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)  # jobs end by the hundred


class _Jobs:
    """The finished jobs of a batch, for one reader. It knows how many it has told of, so that it never searches for
    what is not there."""

    def __init__(self, house: House, after: int) -> None:
        self._db = house.db
        self._after = after
        self._told = 0
        self._done = -1

    async def until(self, row: BatchRow) -> AsyncIterator[bytes]:
        """Those that have finished by now."""
        if self._done < 0 or row.done < self._done or row.state in BATCH_FINISHED:
            # At first, when jobs were taken up again, and to be sure at the end.
            self._told = await count_until(self._db, row.id, self._after)
        self._done = row.done
        while self._told < row.done:
            wanted = min(_JOBS_AT_ONCE, row.done - self._told)
            found = await finished_after(self._db, row.id, self._after, limit=wanted)
            if not found:
                return
            self._after = found[-1].id
            self._told += len(found)
            yield b"".join(_event("job", _job(row, job), job.id) for job in found)


def _counts(row: BatchRow) -> dict[str, Any]:
    return {
        "batch_id": row.public_id,
        "status": status_of(row).value,
        "request_counts": msgspec.to_builtins(counts_of(row)),
    }


def _job(row: BatchRow, job: FinishedJob) -> dict[str, Any]:
    return {
        "id": job_public_id(row.public_id, job.position),
        "custom_id": job.name,
        "status": job.state,
        "status_code": job.status_code,
        "error_code": job.error_code,
        "attempts": job.attempts,
    }


def _event(name: str, data: dict[str, Any], number: int | None = None) -> bytes:
    identified = b"" if number is None else b"id: %d\n" % number
    return b"event: %b\n%bdata: %b\n\n" % (name.encode(), identified, msgspec.json.encode(data))
