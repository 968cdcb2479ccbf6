"""Tenants for those who run the server: their shares and caps, what they use, and whether they are paused."""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import JSONResponse, Response

from api import bodies
from api.auth import AdminIs
from api.errors import ApiError
from api.handling_terms import CAPS, field_refused
from api.openapi import answers, takes
from api.state import House, HouseIs
from promptmill.errors import NotFound, UsageError
from promptmill.store import pauses, tenant_terms
from promptmill.store.pauses import What
from promptmill.store.tenant_terms import TenantChange, TenantRow, Usage

router = APIRouter(prefix="/v1/tenants", tags=["control"])

_MAX_BODY_BYTES: Final = 64 * 1024


class UsageObject(msgspec.Struct, kw_only=True):
    """What it has that is not finished, and the tokens since its first batch."""

    batches: int
    jobs: int
    in_flight: int
    prompt_tokens: int
    completion_tokens: int


class TenantObject(msgspec.Struct, kw_only=True):
    """A tenant."""

    object: str
    name: str
    created_at: int
    weight: float
    max_in_flight: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    paused: bool
    usage: UsageObject


class TenantList(msgspec.Struct, kw_only=True):
    """All of them, the oldest first."""

    object: str
    data: list[TenantObject]


class TenantRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to be other than it was; null: no cap."""

    weight: float | UnsetType = UNSET
    max_in_flight: int | UnsetType | None = UNSET
    requests_per_minute: float | UnsetType | None = UNSET
    tokens_per_minute: float | UnsetType | None = UNSET


_CHANGE: Final[dict[str, Any]] = {"type": "object", "properties": CAPS}


@router.get("", responses=answers(TenantList))
async def list_tenants(house: HouseIs, _admin: AdminIs) -> Response:
    """All tenants with their shares, caps and usage."""
    rows = await tenant_terms.listed(house.db)
    return JSONResponse({"object": "list", "data": await _objects(house, rows)})


@router.get("/{name}", responses=answers(TenantObject, 404))
async def retrieve(name: str, house: HouseIs, _admin: AdminIs) -> Response:
    """One tenant."""
    return await _shown(house, name)


@router.post("/{name}", openapi_extra=takes(_CHANGE), responses=answers(TenantObject, 404, 413))
@router.patch("/{name}", openapi_extra=takes(_CHANGE), responses=answers(TenantObject, 404, 413))
async def change(name: str, request: Request, house: HouseIs, _admin: AdminIs) -> Response:
    """Change its share or its caps. What is left out stays."""
    row = await _found(house, name)
    wanted = await bodies.decoded(request, TenantRequest, _MAX_BODY_BYTES)
    try:
        await tenant_terms.change(house.db, tenant_id=row.id, wanted=TenantChange(**msgspec.structs.asdict(wanted)))
    except UsageError as error:
        raise field_refused(error) from None
    await house.ring()
    return await _shown(house, name)


@router.post("/{name}/pause", responses=answers(TenantObject, 404))
async def pause(name: str, house: HouseIs, _admin: AdminIs) -> Response:
    """Start none of its jobs until it is resumed. Calls that are out end, and their answers are kept."""
    row = await _found(house, name)
    await pauses.pause(house.db, What.TENANT, row.id, now=house.clock())
    await house.ring()
    return await _shown(house, name)


@router.post("/{name}/resume", responses=answers(TenantObject, 404))
async def resume(name: str, house: HouseIs, _admin: AdminIs) -> Response:
    """Go on. Resuming twice changes nothing."""
    row = await _found(house, name)
    await pauses.resume(house.db, What.TENANT, row.id, now=house.clock())
    await house.ring()
    return await _shown(house, name)


async def _found(house: House, name: str) -> TenantRow:
    if "\0" in name:
        raise ApiError(404, "No tenant has such a name.", code="not_found", param="name")
    try:
        return await tenant_terms.find(house.db, name)
    except NotFound as error:
        raise ApiError(404, f"{error}.", code="not_found", param="name") from None


async def _shown(house: House, name: str) -> Response:
    (told,) = await _objects(house, [await _found(house, name)])
    return JSONResponse(told)


async def _objects(house: House, rows: list[TenantRow]) -> list[dict[str, Any]]:
    used = await tenant_terms.usage(house.db)
    paused = {pause.id for pause in await pauses.listed(house.db) if pause.what is What.TENANT}
    return [
        msgspec.to_builtins(
            TenantObject(
                object="tenant",
                name=row.name,
                created_at=int(row.created_at),
                weight=row.weight,
                max_in_flight=row.max_in_flight,
                requests_per_minute=row.requests_per_minute,
                tokens_per_minute=row.tokens_per_minute,
                paused=row.id in paused,
                usage=msgspec.convert(used.get(row.id, Usage()), UsageObject, from_attributes=True),
            )
        )
        for row in rows
    ]
