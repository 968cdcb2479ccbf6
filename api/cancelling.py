"""How something is to be stopped: what a batch's and a job's `cancel` are sent."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import Query, Request

from api import bodies

_MAX_BODY_BYTES: Final = 64 * 1024

CANCEL: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"abort": {"type": "boolean", "default": False, "description": "Break off calls that are out."}},
}

#: A route's parameter.
Abort = Annotated[bool, Query(description="Break off calls that are out.")]


class CancelRequest(msgspec.Struct, forbid_unknown_fields=True):
    """How it is to be stopped."""

    abort: bool = False


async def is_abort(request: Request, abort: bool) -> bool:
    """Are calls to be broken off? The address or the body says so. Raises ApiError."""
    data = await bodies.read(request, _MAX_BODY_BYTES)
    return abort or (bool(data.strip()) and bodies.decode(data, CancelRequest).abort)
