"""Around every request: its id, its limits, its path as we spell it, and its errors in the caller's words.

Plain ASGI, since it must not touch bodies that stream.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import dialects
from api.errors import ApiError
from promptmill.errors import InputError, NotFound, NotNow, StoreError, UsageError

log = logging.getLogger("promptmill.api")

#: Names and values of all headers together.
MAX_HEADER_BYTES: Final = 64 * 1024
_SERVER_ERROR: Final = 500
#: A caller's own id is passed on where it is short and plain.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: An address that needs no key is one.
_SECRET: Final = re.compile(r"(/incoming/).*")
_DOUBLED: Final = re.compile(r"^/(?:v1/+)+(?=v1/)")


class Door:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, *, max_open_requests: int, observe: Callable[[Scope, int, float], None] = lambda *_: None
    ) -> None:
        """`observe` is told the scope, the status and the seconds of every request."""
        self._app = app
        self._max_open = max_open_requests
        self._observe = observe
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        path = _DOUBLED.sub("/", scope["path"])
        if path != scope["path"]:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        answer = _Answer(send, request_id)
        self._open += 1
        try:
            if refusal := self._refusal(scope):
                await error_response(Request(scope), refusal)(scope, receive, answer.send)
                return
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            told = as_api_error(error)
            if told is None or told.status >= _SERVER_ERROR:
                log.exception("request %s: %s %s broke", request_id, scope["method"], _SECRET.sub(r"\1…", path))
            if answer.begun:
                raise  # nothing but closing the connection tells the caller that this is not the whole answer
            told = told or ApiError(500, f"Something broke here; the log has it under {request_id}.", code="internal")
            await error_response(Request(scope), told)(scope, receive, answer.send)
        finally:
            self._open -= 1
            self._observe(scope, answer.status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return ApiError(431, f"The headers have more than {MAX_HEADER_BYTES:,} bytes.", code="headers_too_large")
        if self._open > self._max_open and not scope["path"].startswith(("/healthz", "/readyz")):
            return ApiError(
                503, f"{self._max_open:,} requests are open already; try again in a moment.", code="too_many_requests",
                headers={"Retry-After": "1"},
            )  # fmt: skip
        return None


class _Answer:
    """Sees an answer go by, and gives it its id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.begun = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            headers = [*message["headers"], (b"x-promptmill-request-id", self._request_id.encode())]
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", self._request_id.encode()))
            message = {**message, "headers": headers}
        await self._send(message)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return f"req_{secrets.token_hex(12)}"


def error_response(request: Request, error: ApiError) -> Response:
    """An error in the caller's dialect."""
    body = dialects.error_body(error, dialects.spoken(request), request.scope["path"])
    return JSONResponse(body, status_code=error.status, headers=dict(error.headers))


def as_api_error(error: Exception) -> ApiError | None:
    """What an exception means for the caller; None: it is a fault of ours."""
    for kind, meaning in _MEANINGS.items():
        if isinstance(error, kind):
            return meaning(error)
    return None


def _from_input(error: Any) -> ApiError:
    first = error.errors[0]
    return ApiError(400, str(first), code=first.code, param=first.param)


def _from_validation(error: RequestValidationError) -> ApiError:
    first: dict[str, Any] = dict(error.errors()[0])
    where, *path = [str(part) for part in first.get("loc", ("body",))]
    name = ".".join(path)
    words = str(first.get("msg", "is wrong"))
    return ApiError(400, f"{name or where}: {words}.", code="invalid_request", param=name or None)


def _from_http(error: HTTPException) -> ApiError:
    if error.status_code == 404:  # noqa: PLR2004 - what it is called everywhere
        return ApiError(404, "There is no such path here; GET /openapi.json lists all.", code="unknown_path")
    if error.status_code == 405:  # noqa: PLR2004
        return ApiError(
            405, "This path does not take that method.", code="method_not_allowed", headers=error.headers or {}
        )
    return ApiError(error.status_code, str(error.detail), headers=error.headers or {})


def _away(error: Exception) -> ApiError:
    words = str(getattr(error, "orig", "")).lower()
    if "no such table" in words or "does not exist" in words:
        return ApiError(503, "The database has no promptmill tables; run: promptmill migrate.", code="no_tables")
    return ApiError(
        503, "The database is away; the request was not taken. Try again in a moment.", code="database_unavailable",
        headers={"Retry-After": "2"},
    )  # fmt: skip


#: The first one that fits says it.
_MEANINGS: Final[dict[type[Exception], Callable[[Any], ApiError]]] = {
    ApiError: lambda error: error,
    InputError: _from_input,
    NotFound: lambda error: ApiError(404, str(error), code="not_found"),
    NotNow: lambda error: ApiError(409, f"{error}.", code="wrong_state"),
    UsageError: lambda error: ApiError(400, str(error), code="invalid_request"),
    RequestValidationError: _from_validation,
    HTTPException: _from_http,
    StoreError: lambda error: ApiError(503, str(error), code="database_unavailable", headers={"Retry-After": "5"}),
    OSError: _away,
    sa.exc.InterfaceError: _away,
    sa.exc.OperationalError: _away,
    sa.exc.ProgrammingError: _away,
    sa.exc.TimeoutError: _away,
}


async def handle(request: Request, error: Exception) -> Response:
    """For FastAPI, which would otherwise answer these in its own words."""
    told = as_api_error(error)
    if told is None:
        raise error
    return error_response(request, told)
