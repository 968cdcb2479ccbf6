"""GET /v1/models: what the upstreams say that they serve, in the shape that the caller's client reads."""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from api.auth import CallerIs
from api.dialects import Dialect, spoken
from api.errors import not_found
from api.openapi import answers, refusals
from api.state import HouseIs

router = APIRouter(tags=["models"])

_OK: Final = 200
_LIST: Final = {"oneOf": [{"type": "object"}, {"type": "array"}], "description": "A bare array for Together's clients."}


@router.get("/v1/models", responses={**answers(_LIST), **refusals(502, 504, passed_on=True)})
async def list_models(request: Request, house: HouseIs, _caller: CallerIs) -> Response:
    """The models, each as its upstream lists it. With one upstream, its refusal is passed on as it is."""
    replies = [await house.upstreams.models(upstream) for upstream in house.settings.upstreams]
    if len(replies) == 1 and replies[0].status_code != _OK:
        reply = replies[0]
        return Response(reply.content, status_code=reply.status_code, media_type=reply.headers.get("content-type"))
    models = [model for reply in replies if reply.status_code == _OK for model in _models(reply.content)]
    told = models if spoken(request) is Dialect.TOGETHER else {"object": "list", "data": models}
    return Response(msgspec.json.encode(told), media_type="application/json")


@router.get("/v1/models/{model:path}", responses=answers({"type": "object"}, 404, 502, 504))
async def retrieve_model(model: str, house: HouseIs, _caller: CallerIs) -> Response:
    """One model, as its upstream lists it."""
    upstream = house.settings.upstream_for(model)
    if upstream is not None:
        for found in _models((await house.upstreams.models(upstream)).content):
            if isinstance(found, dict) and found.get("id") == model:
                return Response(msgspec.json.encode(found), media_type="application/json")
    raise not_found("model", model)


def _models(content: bytes) -> list[Any]:
    try:
        value = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return []
    if isinstance(value, dict):
        value = value.get("data")
    return value if isinstance(value, list) else []
