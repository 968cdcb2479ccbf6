"""Batches that are built up by their producer: jobs are added while it is open, until it is sealed."""

import asyncio
import time
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, Raw, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse, Response

from api import bodies, idempotency
from api.auth import CallerIs
from api.batches import BATCH_SCHEMA, answer, find, reached
from api.call_schemas import any_call
from api.errors import ApiError, invalid
from api.jobs import line_refused
from api.openapi import IDEMPOTENCY_KEY, answers, takes
from api.state import House, HouseIs
from promptmill.errors import LineError
from promptmill.intake.append import Addition, NotOpen, Repeated, append
from promptmill.intake.checker import Checker
from promptmill.job import BATCH_FINISHED, BatchState, job_public_id
from promptmill.jsonl import Line
from promptmill.kinds import PATHS
from promptmill.store import batches
from promptmill.store.batches import BatchRow

router = APIRouter(prefix="/v1/batches", tags=["batches"])

MAX_JOBS: Final = 10_000
_TURN_SECONDS: Final = 0.003


class AddedRequest(msgspec.Struct, kw_only=True):
    """A line of a batch file."""

    body: Raw | UnsetType = UNSET
    custom_id: str | None = None
    method: str | None = None
    url: str | None = None


class AddedRequests(msgspec.Struct, kw_only=True):
    """Lines of a batch file."""

    requests: list[AddedRequest]


_TAKEN: Final = {
    "type": "object",
    "required": ["requests"],
    "properties": {
        "requests": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_JOBS,
            "items": {
                "type": "object",
                "required": ["body"],
                "properties": {
                    "custom_id": {"type": "string"},
                    "method": {"type": "string", "enum": ["POST"]},
                    "url": {"enum": list(PATHS)},
                    "body": any_call(names_model=False),  # the batch may have said it
                },
            },
        }
    },
}
_ADDED: Final = {
    "type": "object",
    "required": ["object", "batch_id", "ids"],
    "properties": {
        "object": {"type": "string"},
        "batch_id": {"type": "string"},
        "ids": {"type": "array", "items": {"type": "string"}},
    },
}


@router.post(
    "/{batch_id}/jobs",
    openapi_extra=takes(_TAKEN, parameters=[IDEMPOTENCY_KEY]),
    responses=answers(_ADDED, 404, 409, 413),
)
async def add(batch_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Add jobs to a batch that was created with `"open": true`: all of them, or none."""
    batch = await find(house, caller, batch_id)
    data = await bodies.read(request, house.settings.max_request_bytes)
    wanted = bodies.decode(data, AddedRequests).requests
    if not 0 < len(wanted) <= MAX_JOBS:
        raise invalid(f"requests must have 1 to {MAX_JOBS:,} of them; it has {len(wanted):,}.", param="requests")
    key = idempotency.key_of(request)
    async with idempotency.once(house, caller, key, data) as made:
        if made is None:

            async def also(connection: AsyncConnection, first: int) -> None:
                if key is not None:
                    told = {"first": first, "count": len(wanted)}
                    await idempotency.keep(connection, caller, key, told)

            additions = await _checked(house, batch, wanted)
            try:
                first = await append(house.db, batch, additions, now=house.clock(), also=also)
            except NotOpen:
                raise _not_open(await batches.get(house.db, batch.id)) from None
            except Repeated as repeated:
                raise line_refused(repeated.error, _where(repeated.error)) from None
            await house.ring()
        else:
            first = made["first"]
    ids = [job_public_id(batch.public_id, first + index) for index in range(len(wanted))]
    return JSONResponse({"object": "list", "batch_id": batch.public_id, "ids": ids})


async def _checked(house: House, batch: BatchRow, wanted: list[AddedRequest]) -> list[Addition]:
    checker = Checker.of_batch(house.db, house.settings, batch)
    additions = []
    turn_began = time.perf_counter()
    for number, one in enumerate(wanted, 1):
        if time.perf_counter() - turn_began > _TURN_SECONDS:
            await asyncio.sleep(0)  # ten thousand lines take a moment, and others wait
            turn_began = time.perf_counter()
        line = Line(number, _envelope(one))
        parsed = checker.parsed(line)
        if isinstance(parsed, LineError):
            raise line_refused(parsed, _where(parsed))
        lane_id = checker.known_lane(parsed) or await checker.lane(line, parsed)
        if isinstance(lane_id, LineError):
            raise line_refused(lane_id, _where(lane_id))
        additions.append(Addition(line.data, parsed, lane_id))
    return additions


def _envelope(one: AddedRequest) -> bytes:
    members: dict[str, Any] = {"custom_id": one.custom_id, "method": one.method, "url": one.url}
    given = {name: value for name, value in members.items() if value is not None}
    # Always there, so that the line is an envelope whatever else it has; null is refused by name.
    return msgspec.json.encode({**given, "body": None if isinstance(one.body, UnsetType) else one.body})


def _where(error: LineError) -> str:
    return f"requests[{(error.line or 1) - 1}]."


def _not_open(batch: BatchRow) -> ApiError:
    if batch.state is BatchState.VALIDATING:
        return ApiError(
            409, f"The file of {batch.public_id} is still being read; add jobs when it is in progress.",
            code="batch_not_ready", headers={"Retry-After": "1"},
        )  # fmt: skip
    words = f"is {batch.state.value}" if batch.state in BATCH_FINISHED else "is sealed"
    return ApiError(409, f"The batch {batch.public_id} {words}: no jobs can be added.", code="batch_not_open")


@router.post("/{batch_id}/seal", responses=answers(BATCH_SCHEMA, 404, 409))
async def seal(batch_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """No more jobs are added: the batch ends when those that it has are done. Sealing twice changes nothing."""
    row = await reached(house, caller, batch_id)
    now = house.clock()
    batches.refuse_left(row, now)
    await batches.seal_batch(house.db, batch_id=row.id, now=now)
    return await answer(request, house, await batches.get(house.db, row.id))
