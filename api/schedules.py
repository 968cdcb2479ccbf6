"""Schedules over HTTP: made, looked at, changed, switched on and off, removed."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse, Response

from api import bodies, idempotency, schedule_terms
from api.auth import Caller, CallerIs
from api.errors import ApiError, invalid, not_found
from api.openapi import IDEMPOTENCY_KEY, answers, schema, takes
from api.pages import page, page_schema
from api.schedule_facts import ScheduleObject, schedules_shown
from api.schedule_lines import let_go, looked_at, says_lines, with_lines
from api.schedule_terms import ScheduleRequest
from api.state import House, HouseIs
from promptmill.schedules import Schedule
from promptmill.store import deciding, schedules
from promptmill.store.schedules import NameTaken, ScheduleRow

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])

_SHOWN: Final = schema(ScheduleObject)
_DELETED: Final = {
    "type": "object",
    "required": ["id", "object", "deleted"],
    "properties": {"id": {"type": "string"}, "object": {"const": "schedule"}, "deleted": {"const": True}},
}


@router.post(
    "",
    status_code=201,
    openapi_extra=takes(schedule_terms.BODY, parameters=[IDEMPOTENCY_KEY]),
    responses=answers(_SHOWN, 404, 409, 413, status=201),
)
async def create(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Make a schedule: by `cron` in a time zone, or once `at` a time; of an uploaded file, or of `requests`. The lines
    are looked at now, as a fire would submit them: with a very large file that takes a while."""
    data = await bodies.read(request, house.settings.max_request_bytes)
    wanted = bodies.decode(data, ScheduleRequest)
    key = idempotency.key_of(request)
    async with idempotency.once(house, caller, key, data) as made:
        row = await (_make(house, caller, wanted, key) if made is None else find_schedule(house, caller, made["id"]))
    return await _answer(house, row, status=201)


async def _make(house: House, caller: Caller, wanted: ScheduleRequest, key: str | None) -> ScheduleRow:
    now, name = house.clock(), schedule_terms.name_of(wanted)
    when = schedule_terms.when_of(wanted, Schedule(id=schedules.new_id()), now)
    terms = schedule_terms.terms_of(wanted, schedule_terms.no_terms(house.settings.max_attempts))
    terms = await with_lines(house, caller, wanted, name, when, terms)

    async def also(connection: AsyncConnection) -> None:
        if key is not None:
            await idempotency.keep(connection, caller, key, {"id": when.id})

    try:
        return await schedules.create(
            house.db, name=name, when=when, terms=terms, now=now, tenant_id=caller.tenant_id, also=also,
            is_enabled=True if isinstance(wanted.enabled, UnsetType) else wanted.enabled,
        )  # fmt: skip
    except NameTaken:
        await let_go(house, wanted, terms)
        raise _name_taken(name) from None


@router.get("", responses=answers(page_schema(_SHOWN)))
async def list_schedules(
    house: HouseIs,
    caller: CallerIs,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Schedules, the newest first."""
    below = None
    if after is not None:
        last = await schedules.by_public_id(house.db, after, tenant_id=caller.tenant_id)
        if last is None:
            raise invalid(f"after: no schedule {after[:100]!r}; give the last id of the page before.", param="after")
        below = last.id
    rows = await schedules.listed(house.db, tenant_id=caller.tenant_id, below=below, limit=limit + 1)
    return JSONResponse(page(await schedules_shown(house.db, rows[:limit]), has_more=len(rows) > limit))


@router.get("/{schedule_id}", responses=answers(_SHOWN, 404))
async def retrieve(schedule_id: str, house: HouseIs, caller: CallerIs) -> Response:
    """The schedule as it is kept."""
    return await _answer(house, await find_schedule(house, caller, schedule_id))


@router.post("/{schedule_id}", openapi_extra=takes(schedule_terms.CHANGE), responses=answers(_SHOWN, 404, 409, 413))
@router.patch("/{schedule_id}", openapi_extra=takes(schedule_terms.CHANGE), responses=answers(_SHOWN, 404, 409, 413))
async def change(schedule_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Change its name, its times, its terms or its lines, from the next fire on. What is left out stays."""
    row = await find_schedule(house, caller, schedule_id)
    wanted = await bodies.decoded(request, ScheduleRequest, house.settings.max_request_bytes)
    now = house.clock()
    name = schedule_terms.name_of(wanted, row.name)
    when = schedule_terms.when_of(wanted, row.when, now)
    terms = schedule_terms.terms_of(wanted, row.terms)
    if says_lines(wanted):
        terms = await with_lines(house, caller, wanted, name, when, terms)
    elif (terms.defaults, terms.endpoint) != (row.terms.defaults, row.terms.endpoint):
        terms = await looked_at(house, caller, name, when, terms)
    await deciding.decide(house.db, row.id, now=now)  # what was due until now was due by the old times
    try:
        row = await schedules.change(house.db, row.id, name=name, when=when, terms=terms, now=now)
    except NameTaken:
        await let_go(house, wanted, terms)
        raise _name_taken(name) from None
    if wanted.enabled is not UNSET:
        switch = schedules.enable if wanted.enabled else schedules.disable
        row = await switch(house.db, row.id, now=now)
    return await _answer(house, row)


@router.post("/{schedule_id}/enable", responses=answers(_SHOWN, 404))
async def enable(schedule_id: str, house: HouseIs, caller: CallerIs) -> Response:
    """Fire from now on. What passed while it was disabled is neither run nor called missed."""
    row = await find_schedule(house, caller, schedule_id)
    return await _answer(house, await schedules.enable(house.db, row.id, now=house.clock()))


@router.post("/{schedule_id}/disable", responses=answers(_SHOWN, 404))
async def disable(schedule_id: str, house: HouseIs, caller: CallerIs) -> Response:
    """Fire no more until it is enabled. Batches that it made go on."""
    row = await find_schedule(house, caller, schedule_id)
    return await _answer(house, await schedules.disable(house.db, row.id, now=house.clock()))


@router.delete("/{schedule_id}", responses=answers(_DELETED, 404))
async def remove(schedule_id: str, house: HouseIs, caller: CallerIs) -> Response:
    """Remove it. Batches that it made stay."""
    row = await find_schedule(house, caller, schedule_id)
    await schedules.remove(house.db, row.id, now=house.clock())
    return JSONResponse({"id": row.public_id, "object": "schedule", "deleted": True})


async def find_schedule(house: House, caller: Caller, schedule_id: str) -> ScheduleRow:
    """The caller's schedule. Raises ApiError."""
    row = await schedules.by_public_id(house.db, schedule_id, tenant_id=caller.tenant_id)
    if row is None:
        raise not_found("schedule", schedule_id)
    return row


async def _answer(house: House, row: ScheduleRow, *, status: int = 200) -> Response:
    shown: list[dict[str, Any]] = await schedules_shown(house.db, [row])
    return JSONResponse(shown[0], status_code=status)


def _name_taken(name: str) -> ApiError:
    return ApiError(
        409, f"There is a schedule called {name!r}; give another name, or change that one.",
        code="schedule_name_taken", param="name",
    )  # fmt: skip
