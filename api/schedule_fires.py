"""Fires over HTTP: one that somebody asks for now, and what became of all of them."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse, Response

from api import bodies, idempotency
from api.auth import CallerIs
from api.errors import invalid
from api.openapi import IDEMPOTENCY_KEY, answers, schema
from api.pages import page, page_schema
from api.schedule_facts import FireObject, fire_shown, fire_time_of
from api.schedules import find_schedule
from api.state import HouseIs
from promptmill.intake.fire import carry_out
from promptmill.store import deciding, fires

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])

_FIRE: Final = schema(FireObject)
#: A body is not read, but one that is sent all the same is the request's.
_MAX_BODY_BYTES: Final = 1024 * 1024


@router.post(
    "/{schedule_id}/run",
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
    responses=answers(_FIRE, 404, 409, 413),
)
async def run(schedule_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Fire now, whatever its times say, beside other batches of it and also while it is disabled."""
    data = await bodies.read(request, _MAX_BODY_BYTES)
    schedule = await find_schedule(house, caller, schedule_id)
    key = idempotency.key_of(request)
    async with idempotency.once(house, caller, key, data) as made:
        if made is None:

            async def also(connection: AsyncConnection, fire_id: int) -> None:
                if key is not None:
                    await idempotency.keep(connection, caller, key, {"fire": fire_id})

            fire_id = await deciding.run_now(house.db, schedule.id, holder=house.holder, now=house.clock(), also=also)
            batch_id = await carry_out(house.db, house.settings, fire_id, holder=house.holder, clock=house.clock)
            if batch_id is not None:
                house.admitter.admit(batch_id)
        else:
            fire_id = made["fire"]
    return JSONResponse(fire_shown(await fires.get(house.db, fire_id), schedule))


@router.get("/{schedule_id}/fires", responses=answers(page_schema(_FIRE), 404))
async def history(
    schedule_id: str,
    house: HouseIs,
    caller: CallerIs,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """What became of its fires, the latest first."""
    schedule = await find_schedule(house, caller, schedule_id)
    below = None
    if after is not None:
        below = fire_time_of(after, schedule.public_id)
        if below is None:
            raise invalid(
                f"after: no fire {after[:100]!r} of this schedule; give the last id of the page before.", param="after"
            )
    rows = await fires.history(house.db, schedule.id, below=below, limit=limit + 1)
    return JSONResponse(page([fire_shown(row, schedule) for row in rows[:limit]], has_more=len(rows) > limit))
