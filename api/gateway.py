"""The synchronous door: what a client sends to one of these paths becomes a job, and the answer is the upstream's.

The caller waits as long as it likes. One that goes away costs nothing twice: its job goes on, and when it asks again
(the same Idempotency-Key, or an SDK's retry of the same request) it is given that job's answer.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse

from api import bodies, forms, idempotency
from api.addresses import base_url
from api.auth import Caller
from api.call_schemas import call_schema
from api.hold import Held
from api.jobs import line_refused
from api.lanes import refuse_halted
from api.openapi import IDEMPOTENCY_KEY, header, refusals, takes
from api.state import House, at_once
from promptmill.errors import LineError
from promptmill.hints import JobKey
from promptmill.intake.inbox import Submission, Submitted
from promptmill.job import State
from promptmill.kinds import PATHS, Kind
from promptmill.priority import HELD
from promptmill.request import streams
from promptmill.store import jobs

router = APIRouter(tags=["gateway"])

_ERRORS: Final = (402, 404, 405, 409, 413, 415, 429, 502, 504)
_FORM: Final = {
    "type": "object",
    "required": ["model", "file"],
    "properties": {"model": {"type": "string"}, "file": {"type": "string", "format": "binary"}},
}


async def answer(request: Request) -> Response:
    """The upstream's answer to this request, through the queue and its limits."""
    house, caller = await at_once(request)
    path = request.scope["path"]
    kind = PATHS[path]
    body, digest = await _body(request, house, caller, kind)
    line = b'{"url":"%b","body":%b}' % (path.encode(), body)
    found = await house.inbox.checked(caller.tenant_id, line, allow_stream=True)
    if isinstance(found, LineError):
        raise line_refused(found)
    parsed, lane_id = found
    again = idempotency.key_of(request)
    fingerprint = _fingerprint(caller, path, digest)
    key, held_id = await _asked_before(request, house, caller, again, digest, fingerprint)
    if key is None:
        try:
            await refuse_halted(house, lane_id)
            submission = Submission(
                tenant_id=caller.tenant_id, line=line, parsed=parsed, lane_id=lane_id, priority=HELD,
                fingerprint=fingerprint,
            )  # fmt: skip

            async def keep(connection: AsyncConnection, made: Sequence[Submitted]) -> None:
                if again is not None:
                    told = {"key": list(made[0].key), "id": made[0].public_id}
                    await idempotency.keep(connection, caller, again, told)

            (submitted,) = await house.inbox.submit([submission], also=keep)
        except BaseException:
            if again is not None:
                await idempotency.forget(house, caller, again)  # takes nothing back that was kept
            raise
        key, held_id, public_id = submitted.key, submitted.held_id, submitted.public_id
    else:
        public_id = await jobs.public_id_of(house.db, key, tenant_id=caller.tenant_id)
    if _wants_async(request):
        return _promised(request, house, public_id, held_id)
    streamed = streams(body)
    return Held(
        house, key, public_id, held_id=held_id, lane_id=lane_id, streamed=streamed,
        may_begin_early=not streamed and not kind.answers_binary(body),
    )  # fmt: skip


async def _body(request: Request, house: House, caller: Caller, kind: Kind) -> tuple[bytes, bytes]:
    """The body as JSON, and what it is recognised by when it is sent again."""
    content_type = bodies.media_type(request)
    limit = house.settings.max_request_bytes
    if kind.sends == "multipart" and content_type != "application/json":
        return await forms.as_body(request, house, caller, limit)
    if content_type not in ("application/json", "") and not content_type.endswith("+json"):
        raise bodies.unsupported(request, "application/json")
    data = (await bodies.read(request, limit)).strip()
    bodies.check_json(data)
    bodies.check_object(data)  # it will stand in an envelope: what only begins like an object must not reach into that
    return data, data


def _fingerprint(caller: Caller, path: str, digest: bytes) -> str:
    facts = f"{caller.tenant_id} {caller.key_id} {path} ".encode()
    return hashlib.sha256(facts + hashlib.sha256(digest).digest()).hexdigest()


async def _asked_before(
    request: Request, house: House, caller: Caller, again: str | None, digest: bytes, fingerprint: str
) -> tuple[JobKey | None, int | None]:
    """The job of the same request, where this is not the first time that it is sent."""
    if again is not None:
        known = await idempotency.begin_or_wait(house, caller, again, digest)
        return ((known["key"][0], known["key"][1]) if known is not None else None), None
    if _retry_count(request) == 0:
        return None, None
    found = await house.held.taken_up(tenant_id=caller.tenant_id, fingerprint=fingerprint, clock=house.clock)
    return (None, None) if found is None else (found[1], found[0])


def _retry_count(request: Request) -> int:
    text = request.headers.get("x-stainless-retry-count", "")
    return int(text) if text.isdecimal() else 0


def _wants_async(request: Request) -> bool:
    return any("respond-async" in value.lower() for value in request.headers.getlist("prefer"))


def _promised(request: Request, house: House, public_id: str, held_id: int | None) -> Response:
    """202: the answer will be at the job's address."""
    if held_id is not None:
        house.held.answered(held_id)
    told: dict[str, Any] = {"id": public_id, "object": "job", "status": State.READY.value, "ids": [public_id]}
    headers = {"Location": f"{base_url(request)}/v1/jobs/{public_id}", "Preference-Applied": "respond-async"}
    return JSONResponse(told, status_code=202, headers=headers)


_ACCEPTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The upstream's answer, as it came.",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {}}, "*/*": {"schema": {}}},
    },
    202: {
        "description": "With `Prefer: respond-async`: the job that will have the answer.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
}
_HEADERS: Final = (
    IDEMPOTENCY_KEY,
    header("Prefer", "respond-async: do not wait, be told where the answer will be.", enum=["respond-async"]),
)


def _takes(kind: Kind) -> dict[str, Any]:
    if kind.sends == "multipart":
        return takes(_FORM, "multipart/form-data", parameters=_HEADERS)
    return takes(call_schema(kind), parameters=_HEADERS)


for _path, _kind in PATHS.items():
    router.add_api_route(
        _path,
        answer,
        methods=["POST"],
        operation_id=_path.removeprefix("/v1/").replace("/", "_"),
        summary=f"A {_kind.name} call",
        response_class=Response,
        openapi_extra=_takes(_kind),
        responses={**_ACCEPTED, **refusals(*_ERRORS, passed_on=True)},
    )
