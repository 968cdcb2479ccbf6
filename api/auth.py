"""Who is calling. With keys, only their holders; without any, only this machine.

A server to which no key was ever made serves processes of its own machine, as the default tenant, whatever key they
send: that is how one starts. Anybody else is refused, and told how to make a key.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request

from api.errors import ApiError
from promptmill.engine import Database
from promptmill.store import tenants
from promptmill.tables import DEFAULT_TENANT

#: What was read so long ago is read again, beside; what is older than that is not believed any more. So a revoked key
#: opens nothing after the second, and on a server that is in use after little more than the first.
KNOWN_SECONDS: Final = 2.0
BELIEVED_SECONDS: Final = 10.0
#: Keys that are remembered at once, wrong ones too.
_KNOWN_AT_MOST: Final = 10_000

_NEEDED: Final = "send it as `Authorization: Bearer pm_…`; keys are made with `promptmill keys create`"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request is from."""

    tenant_id: int
    #: None: no keys are in use.
    key_id: int | None = None
    #: May see and control what is of all tenants.
    is_admin: bool = True


class Doorkeeper:
    """Knows the keys, and asks the database again every moment."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[str, tuple[float, Any]] = {}  # by key; under "" whether there are any
        self._in_use = False
        self._asking: dict[str, asyncio.Task[Any]] = {}

    async def caller(self, request: Request) -> Caller:
        """Who it is. Raises ApiError."""
        if not await self._keys_in_use():
            return _neighbour(request)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, f"There is no API key in the request: {_NEEDED}.", code="missing_api_key", headers=_ASK)
        found = await self._holder(key)
        if found is None:
            raise ApiError(
                401, f"The API key is not one of this server's, or was revoked: {_NEEDED}.", code="invalid_api_key",
                headers=_ASK,
            )  # fmt: skip
        return Caller(found.tenant_id, found.key_id, found.is_admin)

    async def aclose(self) -> None:
        """Let nothing be asked any more."""
        for task in list(self._asking.values()):
            await asyncio.wait({task})

    async def _keys_in_use(self) -> bool:
        if self._in_use:
            return True  # once there was a key there always was
        self._in_use = bool(await self._known_by("", self._any_key))
        return self._in_use

    async def _any_key(self) -> bool:
        return await tenants.any_key(self._db)

    async def _holder(self, key: str) -> tenants.Holder | None:
        found: tenants.Holder | None = await self._known_by(key, lambda: tenants.holder(self._db, key))
        return found

    async def _known_by(self, name: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What was read a moment ago; what is older is read again beside, so that hundreds of callers at once do not
        wait for it; and only what is older still is waited for."""
        read_at, value = self._known.get(name, (float("-inf"), None))
        age = time.monotonic() - read_at
        if age < KNOWN_SECONDS:
            return value
        if name not in self._asking:
            task = self._asking[name] = asyncio.create_task(self._ask(name, ask()))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        if age < BELIEVED_SECONDS:
            return value
        return await asyncio.shield(self._asking[name])

    async def _ask(self, name: str, question: Coroutine[Any, Any, Any]) -> Any:
        try:
            value = await question
        finally:
            del self._asking[name]
        if len(self._known) >= _KNOWN_AT_MOST:
            self._known.clear()
        self._known[name] = (time.monotonic(), value)
        return value


_ASK: Final = {"WWW-Authenticate": "Bearer"}


def _neighbour(request: Request) -> Caller:
    host = request.client.host if request.client is not None else "localhost"  # None: a Unix socket
    forwarded = "x-forwarded-for" in request.headers or "forwarded" in request.headers
    if is_loopback(host) and not forwarded:
        _refuse_web_pages(request)
        return Caller(DEFAULT_TENANT)
    raise ApiError(
        403,
        "This server has no API keys yet, so it serves only its own machine. Make one there with "
        f"`promptmill keys create NAME`, then {_NEEDED.partition(';')[0]}.",
        code="no_api_keys",
    )


def _refuse_web_pages(request: Request) -> None:
    """A page of somebody else's, open in a browser on this machine, is not this machine's own program. Browsers send
    where a page is from; and a name that leads here only for a moment (DNS rebinding) shows as the Host."""
    origin = request.headers.get("origin")
    names = [request.headers.get("host", "localhost"), *([] if origin is None else [origin.partition("://")[2]])]
    if all(is_loopback(_host_of(name)) for name in names):
        return
    raise ApiError(
        403,
        "Without API keys this server serves programs of its own machine only, by the names localhost and 127.0.0.1, "
        "and no web pages from elsewhere. Make a key with `promptmill keys create NAME`.",
        code="no_api_keys",
    )


def _host_of(authority: str) -> str:
    """Without the port; an IPv6 address without its brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.rpartition(":")[0] if authority.count(":") == 1 else authority


def is_loopback(host: str) -> bool:
    """Is this an address of one's own machine?"""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


async def _caller(request: Request) -> Caller:
    keeper: Doorkeeper = request.state.doorkeeper
    return await keeper.caller(request)


#: A route's parameter of this type makes the route one for callers with a key.
CallerIs = Annotated[Caller, Depends(_caller)]


async def _admin(caller: CallerIs) -> Caller:
    if not caller.is_admin:
        raise ApiError(
            403, "This is about all tenants; it takes a key made with `promptmill keys create --admin`.",
            code="admin_key_needed",
        )  # fmt: skip
    return caller


#: The same, for those who run the server.
AdminIs = Annotated[Caller, Depends(_admin)]
