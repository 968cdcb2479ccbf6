"""For those who run the server: lanes and everything, paused and resumed; and what is paused now."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import JSONResponse, Response

from api.auth import AdminIs
from api.errors import not_found
from api.openapi import answers
from api.state import House, HouseIs
from promptmill.store import lanes, pauses
from promptmill.store.lanes import LaneRow
from promptmill.store.pauses import What

router = APIRouter(prefix="/v1", tags=["control"])

_LaneId = Annotated[int, Path(ge=1, le=2**63 - 1)]


class LaneObject(msgspec.Struct, kw_only=True):
    """A model at an upstream. `paused` is by hand; `paused_until` is the upstream's wish (unix seconds)."""

    id: int
    object: str
    upstream: str
    model: str
    state: str
    reason: str | None
    paused: bool
    paused_until: float | None


class LaneList(msgspec.Struct, kw_only=True):
    """All of them."""

    object: str
    data: list[LaneObject]


class PauseObject(msgspec.Struct, kw_only=True):
    """`what` is batch, lane, tenant or all; `id` is a batch's or a lane's id, or a tenant's name."""

    object: str
    what: str
    id: str | None
    since: float
    reason: str | None


class PauseList(msgspec.Struct, kw_only=True):
    """What is paused, the oldest first."""

    object: str
    data: list[PauseObject]


class AllPaused(msgspec.Struct, kw_only=True):
    """Is everything?"""

    object: str
    paused: bool


@router.get("/lanes", responses=answers(LaneList))
async def list_lanes(house: HouseIs, _admin: AdminIs) -> Response:
    """Every lane: a model at an upstream."""
    rows = await lanes.read(house.db)
    return JSONResponse({"object": "list", "data": await _objects(house, rows)})


@router.post("/lanes/{lane_id}/pause", responses=answers(LaneObject, 404))
async def pause_lane(lane_id: _LaneId, house: HouseIs, _admin: AdminIs) -> Response:
    """Start no call on it until it is resumed. Calls that are out end, and their answers are kept."""
    await _lane(house, lane_id)
    await pauses.pause(house.db, What.LANE, lane_id, now=house.clock())
    await house.ring()
    return JSONResponse(await _lane(house, lane_id))


@router.post("/lanes/{lane_id}/resume", responses=answers(LaneObject, 404))
async def resume_lane(lane_id: _LaneId, house: HouseIs, _admin: AdminIs) -> Response:
    """Go on, also when the lane was halted by what its upstream said: it is tried again with a handful of calls."""
    await _lane(house, lane_id)
    await pauses.resume(house.db, What.LANE, lane_id, now=house.clock())
    await lanes.resumed(house.db, lane_ids=[lane_id])
    await house.ring()
    return JSONResponse(await _lane(house, lane_id))


@router.post("/pause", responses=answers(AllPaused))
async def pause_all(house: HouseIs, _admin: AdminIs) -> Response:
    """Start nothing until it is resumed, whoever's it is. Calls that are out end, and their answers are kept."""
    await pauses.pause(house.db, What.ALL, now=house.clock())
    await house.ring()
    return JSONResponse(_ALL | {"paused": True})


@router.post("/resume", responses=answers(AllPaused))
async def resume_all(house: HouseIs, _admin: AdminIs) -> Response:
    """Go on. What was paused by itself stays so."""
    await pauses.resume(house.db, What.ALL, now=house.clock())
    await house.ring()
    return JSONResponse(_ALL | {"paused": False})


_ALL: Final[dict[str, Any]] = {"object": "everything"}


@router.get("/pauses", responses=answers(PauseList))
async def list_pauses(house: HouseIs, _admin: AdminIs) -> Response:
    """What is paused now. Where promptmill did it by itself (a canary, a budget), `reason` says why."""
    told = [
        PauseObject(
            object="pause",
            what=pause.what,
            id=str(pause.id) if pause.what is What.LANE else name,
            since=pause.since,
            reason=pause.reason,
        )
        for pause, name in await pauses.named(house.db)
    ]
    return JSONResponse({"object": "list", "data": msgspec.to_builtins(told)})


async def _lane(house: House, lane_id: int) -> dict[str, Any]:
    rows = await lanes.read(house.db, [lane_id])
    if not rows:
        raise not_found("lane", str(lane_id))
    (told,) = await _objects(house, rows)
    return told


async def _objects(house: House, rows: list[LaneRow]) -> list[dict[str, Any]]:
    paused = {pause.id for pause in await pauses.listed(house.db) if pause.what is What.LANE}
    now = house.clock()
    told = [
        LaneObject(
            id=row.id,
            object="lane",
            upstream=row.upstream,
            model=row.model,
            state=row.state,
            reason=row.reason,
            paused=row.id in paused,
            paused_until=row.paused_until if row.paused_until is not None and row.paused_until > now else None,
        )
        for row in rows
    ]
    made: list[dict[str, Any]] = msgspec.to_builtins(told)
    return made
