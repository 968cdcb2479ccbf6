"""A request that is held until its job has an answer, and then answered with it: status, headers and bytes as they
came."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Final

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import lanes
from api.door import error_response
from api.errors import ApiError
from api.state import House
from promptmill.hints import JobKey, Piece
from promptmill.job import State
from promptmill.outcome import Reason
from promptmill.store import aborts
from promptmill.store.aborts import Stopped
from promptmill.store.results import Result

log = logging.getLogger("promptmill.api")

#: How often somebody who waits looks whether its lane was halted, and says a blank where it has begun early.
_LOOK_SECONDS: Final = 1.0
#: When the server stops, answers are waited for so long; then callers are told to come again.
_CLOSING_SECONDS: Final = 5.0
_FIRST_REFUSAL: Final = 400
_TIMEOUTS: Final = frozenset({Reason.CONNECT_TIMEOUT, Reason.BETWEEN_BYTES_TIMEOUT, Reason.TOTAL_TIMEOUT})
#: A status that the SDKs send the same again for: the mill has done that already.
_TRIED_AGAIN: Final = frozenset({408, 409, 429, 500, 501, 502, 503, 504})


class Gone(Exception):  # noqa: N818 - a fact about the caller, not a fault
    """The caller went away."""


class Held(Response):
    """Waits, and answers. Once the caller is gone it only notes that: the job goes on."""

    def __init__(
        self,
        house: House,
        key: JobKey,
        public_id: str,
        *,
        held_id: int | None,
        lane_id: int,
        streamed: bool,
        may_begin_early: bool,
    ) -> None:
        super().__init__()
        self._house = house
        self._key = key
        self._public_id = public_id
        self._held_id = held_id
        self._lane_id = lane_id
        self._streamed = streamed
        self._early = house.settings.hold_open_after_seconds if may_begin_early else None
        self._request_id = ""
        self._begun = False
        self._sent = 0  # bytes of the answer
        self._epoch: int | None = None  # the attempt that they are of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request_id = scope["state"]["request_id"]
        waiting = self._house.waiting
        result = asyncio.create_task(waiting.result(self._key))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            with waiting.pieces(self._key) if self._streamed else nullcontext() as pieces:
                found = await self._awaited(result, gone, pieces, send)
            await self._finish(found, Request(scope), receive, send)
            if self._held_id is not None:
                self._house.held.answered(self._held_id)
        except (Gone, asyncio.CancelledError) as ended:
            await self._leave()
            if isinstance(ended, asyncio.CancelledError):
                raise
        finally:
            result.cancel()
            gone.cancel()

    async def _leave(self) -> None:
        if self._held_id is None:
            return
        try:
            await self._house.held.left(self._held_id, now=self._house.clock())
        except (OSError, sa.exc.SQLAlchemyError) as error:
            log.warning(
                "request %s: %s was left and that could not be noted, the database is away (%s)",
                self._request_id, self._public_id, type(error).__name__,
            )  # fmt: skip

    # ---------------------------------------------------------------- waiting

    async def _awaited(
        self,
        result: "asyncio.Task[Result]",
        gone: "asyncio.Task[None]",
        pieces: "asyncio.Queue[Piece] | None",
        send: Send,
    ) -> Result | ApiError:
        """The result, or why there will be none. Pieces of a streamed answer are passed on as they come; what is missed
        of them is sent from the result at the end. Nothing here is cancelled while it speaks to the database."""
        began = asyncio.get_running_loop().time()
        closing = asyncio.create_task(self._closed())
        piece = asyncio.create_task(pieces.get()) if pieces is not None else None
        try:
            while True:
                ends: list[asyncio.Task[Any]] = [result, gone, closing]
                waited_for = ends if piece is None else [*ends, piece]
                await asyncio.wait(waited_for, timeout=self._step(began), return_when=asyncio.FIRST_COMPLETED)
                if piece is not None and pieces is not None and piece.done():
                    await self._send_piece(piece.result(), send)
                    piece = asyncio.create_task(pieces.get())
                elif gone.done():
                    raise Gone  # also when the answer came in the same moment: it is for whoever asks again
                elif result.done():
                    return result.result()
                elif closing.done():
                    return await self._told_to_come_again()
                elif not self._sent and (refusal := await self._refused()) is not None:
                    return refusal
                elif self._early is not None and asyncio.get_running_loop().time() - began >= self._early:
                    await self._blank(send)
        finally:
            closing.cancel()
            if piece is not None:
                piece.cancel()

    async def _closed(self) -> None:
        """The server stops, and has waited for this answer for a while."""
        await self._house.closing.wait()
        await asyncio.sleep(_CLOSING_SECONDS)

    def _step(self, began: float) -> float:
        """Seconds until something has to be looked at or said."""
        if self._early is None or self._begun:
            return _LOOK_SECONDS
        return min(_LOOK_SECONDS, max(0.0, began + self._early - asyncio.get_running_loop().time()))

    async def _send_piece(self, piece: Piece, send: Send) -> None:
        if piece.offset != self._sent or (self._begun and piece.epoch != self._epoch):
            return  # one before it was lost, or it is another attempt's: the rest comes from the result
        self._epoch = piece.epoch
        if not self._begun:
            await self._start(send, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, piece.content_type)
        self._sent += len(piece.data)
        await send({"type": "http.response.body", "body": piece.data, "more_body": True})

    async def _refused(self) -> ApiError | None:
        """Its lane was halted meanwhile, and it was not sent: it will not be."""
        try:
            row = await self._house.lanes.halted(self._lane_id)
            if row is None:
                return None
            stopped = await aborts.stop(self._house.db, self._key, abort=False, now=self._house.clock())
            if stopped is not Stopped.DONE:
                return None
        except (OSError, sa.exc.SQLAlchemyError):
            return None  # the database is away: asked again in a moment
        return lanes.refusal(row)

    async def _told_to_come_again(self) -> ApiError:
        await self._leave()
        self._held_id = None
        return ApiError(
            503, "The server is stopping; the request goes on and its answer is kept. Send it again.",
            code="server_stopping", headers={"Retry-After": "1", "x-should-retry": "true"},
        )  # fmt: skip

    # ---------------------------------------------------------------- answering

    async def _finish(self, found: Result | ApiError, request: Request, receive: Receive, send: Send) -> None:
        if isinstance(found, Result) and self._sent and found.epoch != self._epoch:
            found = ApiError(
                502, "The worker was lost in the middle of the answer; another attempt brought another one, which is "
                "the job's result.", code="stream_broken",
            )  # fmt: skip
        if isinstance(found, Result) and (found.state is State.SUCCEEDED or _is_upstreams(found)):
            await self._send_answer(found, send)
            return
        error = found if isinstance(found, ApiError) else _no_answer(found)
        response = error_response(request, error)
        if not self._begun:
            await response(request.scope, receive, send)
            return
        body = bytes(response.body)
        if self._streamed:  # the SDKs raise what such an event says
            body = b"data: " + body + b"\n\n"
        await send({"type": "http.response.body", "body": body})

    async def _send_answer(self, result: Result, send: Send) -> None:
        status = result.status_code or 200
        if not self._begun:
            headers = dict(result.headers)
            if status in _TRIED_AGAIN:
                headers.setdefault("x-should-retry", "false")
            headers["Content-Length"] = str(len(result.body))
            await self._start(send, status, headers, result.content_type)
        elif self._streamed and status >= _FIRST_REFUSAL:
            await send({"type": "http.response.body", "body": b"data: " + result.body.strip() + b"\n\n"})
            return
        await send({"type": "http.response.body", "body": result.body[self._sent :]})

    async def _blank(self, send: Send) -> None:
        """JSON may begin with blanks, and a client whose patience is per read waits on."""
        if not self._begun:
            await self._start(send, 200, {}, "application/json")
        await send({"type": "http.response.body", "body": b" ", "more_body": True})

    async def _start(self, send: Send, status: int, headers: Mapping[str, str], content_type: str) -> None:
        self._begun = True
        named = {**headers, "X-Promptmill-Job": self._public_id, "Content-Type": content_type}
        raw = [
            (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in named.items()
            if value
        ]
        await send({"type": "http.response.start", "status": status, "headers": raw})


def _is_upstreams(result: Result) -> bool:
    """Is it a refusal in the upstream's own words?"""
    return result.status_code is not None and result.status_code >= _FIRST_REFUSAL and bool(result.body)


def _no_answer(result: Result) -> ApiError:
    """There is no answer of the upstream's to pass on; why, in ours."""
    code = result.error_code or result.state.value
    headers = {"x-should-retry": "false"}
    match result.state:
        case State.CANCELLED:
            return ApiError(409, "The job was cancelled before it was answered.", code=code, headers=headers)
        case State.EXPIRED:
            return ApiError(504, "The job's deadline passed before it was answered.", code=code, headers=headers)
    status = result.status_code
    if status is None or status < _FIRST_REFUSAL:
        status = 504 if code in _TIMEOUTS else 502
    return ApiError(status, result.error_message or "The upstream gave no answer.", code=code, headers=headers)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
