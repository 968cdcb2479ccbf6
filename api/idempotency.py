"""`Idempotency-Key`: a request that is sent again with its key is told what the first one made, and makes nothing.

key = key_of(request)
if key and (made := await begin(house, caller, key, body)) is not None: answer with `made`
... make it; then `keep`, or `forget` where nothing was made.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from api.auth import Caller
from api.errors import ApiError, invalid
from api.state import House
from promptmill.store import idempotency

_WAIT_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.05
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")


class InProgress(ApiError):  # noqa: N818 - reads as what it is
    """The first request with this key is not taken yet."""

    def __init__(self) -> None:
        super().__init__(
            409, "The first request with this Idempotency-Key is still being taken; send it again in a moment.",
            code="idempotency_in_progress", headers={"Retry-After": "1"},
        )  # fmt: skip


def key_of(request: Request) -> str | None:
    """The request's key, made one for its path; None where it has none. Raises ApiError."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        raise invalid("Idempotency-Key must be 1 to 255 printable ASCII characters.", param="Idempotency-Key")
    return f"{request.scope['path']} {given}"


async def begin(house: House, caller: Caller, key: str, body: bytes) -> Any | None:
    """What the first request with this key was told; None for the first one. Raises ApiError (409)."""
    digest = hashlib.sha256(body).hexdigest()
    taken = await idempotency.take(house.db, tenant_id=caller.tenant_id, key=key, digest=digest, now=house.clock())
    if taken is None:
        return None
    if taken.digest != digest:
        raise ApiError(
            409, "This Idempotency-Key came with another body before; use a new key for a new request.",
            code="idempotency_key_reuse", headers={"x-should-retry": "false"},
        )  # fmt: skip
    if taken.resource is None:
        raise InProgress
    return msgspec.json.decode(taken.resource)


async def begin_or_wait(house: House, caller: Caller, key: str, body: bytes) -> Any | None:
    """The same, but where the first one is still being taken, wait a moment for that."""
    give_up = asyncio.get_running_loop().time() + _WAIT_SECONDS
    while True:
        try:
            return await begin(house, caller, key, body)
        except InProgress:
            if asyncio.get_running_loop().time() > give_up:
                raise
            await asyncio.sleep(_LOOK_SECONDS)


async def keep(connection: AsyncConnection, caller: Caller, key: str, told: Any) -> None:
    """This is what whoever sends it again is told. In the transaction that makes it: there is no moment at which only
    one of both is known."""
    resource = msgspec.json.encode(told).decode()
    await idempotency.keep(connection, tenant_id=caller.tenant_id, key=key, resource=resource)


async def forget(house: House, caller: Caller, key: str) -> None:
    """It could not be made: the next request with this key is the first."""
    await idempotency.drop(house.db, tenant_id=caller.tenant_id, key=key)


@asynccontextmanager
async def once(house: House, caller: Caller, key: str | None, body: bytes) -> AsyncIterator[Any | None]:
    """Gives what the first request with this key was told, or None: then the block makes it, and says so (`keep`)."""
    told = None if key is None else await begin(house, caller, key, body)
    try:
        yield told
    except BaseException:
        if key is not None and told is None:
            await forget(house, caller, key)  # takes nothing back that was kept
        raise
