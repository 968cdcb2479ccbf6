"""One connection: what has left, when the first byte came, when the last one did, and an end to it at any moment.

A call may think for an hour, be cancelled in the middle, or trickle in, and each of these has to be told from the
others; so the bytes are read here, by llhttp (the parser of Node.js, through httptools). HTTP/1.1 only: POST and GET,
request bodies whose length is known, one call at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

from promptmill.outcome import Failure, Reason
from worker.transport.call import Call, Event, Stage
from worker.transport.faults import connection_lost, timed_out

#: A larger body is handed to the system in pieces of this size, so that a stalled upload can be seen.
SLICE_BYTES = 256 * 1024
#: A response head larger than this is not one.
MAX_HEAD_BYTES = 256 * 1024
#: A reader that lags this far behind a stream makes the upstream wait.
READ_AHEAD_BYTES = 1024 * 1024
#: Below it an answer is an interim one (100, 103).
FIRST_FINAL_STATUS = 200


class Connection(asyncio.Protocol):
    """An open connection: `send` a call, `wait` for its events or read its `chunks`."""

    def __init__(self) -> None:
        self.closed = False
        self.reusable = False
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._call: Call | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for = Event.END
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._writable = True
        self._paused = False

    # The caller's side.

    def send(self, call: Call, head: bytes, body: bytes) -> None:
        """Begin a call on this connection, which must be idle."""
        self._call = call
        self.reusable = False
        if self.closed:  # between the handshake and this moment
            self.fail(connection_lost(None, call.peer, sending=False, answering=False))
            return
        if len(body) <= SLICE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            call.unsent = memoryview(body)
            self._send_more()
        call.backlog = self._backlog(call)
        self._arm(min(call.deadline, call.moved_at + call.limits.write_seconds))

    async def wait(self, call: Call, event: Event) -> None:
        """Until `event`, or the end. Who is cancelled here takes the connection along."""
        if call.stage is Stage.DONE or (event is Event.HEAD and call.head_done):
            return
        self._waits_for = event
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    async def chunks(self, call: Call) -> AsyncIterator[bytes | Failure]:
        """The body as it comes. A `Failure` is the last thing there is."""
        while True:
            while call.chunks:
                yield call.take()
            if call.stage is Stage.DONE:
                break
            self._resume_reading()
            await self.wait(call, Event.CHUNK)
        if call.failure is not None:
            yield call.failure

    def abort(self) -> None:
        """Close at once; what is not sent yet never will be."""
        self.closed = True
        self._transport.abort()
        self._end()

    def fail(self, failure: Failure) -> None:
        """End the call with `failure`, and the connection with it: what else comes on it belongs to nobody."""
        if self._call is not None:
            self._call.failure = failure
        self.abort()

    def socket(self) -> object:
        """The socket below, or what the event loop hands out for it."""
        return self._transport.get_extra_info("socket")

    def on_closed(self, tell: Callable[["Connection"], None]) -> None:
        """Call `tell` when the event loop has let go of the socket."""
        self._gone.add_done_callback(lambda _: tell(self))

    async def wait_closed(self) -> None:
        """Until the event loop has let go of the socket."""
        await asyncio.shield(self._gone)

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.abort()  # bytes that nobody asked for (a late 408, say) must never become the next call's answer
            return
        now = self._loop.time()
        call.stage = Stage.ANSWERING
        call.received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(call, "wants to switch to another protocol")
        except httptools.HttpParserError as error:
            self._break(call, f"does not answer in HTTP: {error}")
        if self._call is not call or call.stage is not Stage.ANSWERING:
            return
        call.moved_at = now
        if not call.head_done and call.received > MAX_HEAD_BYTES:
            self._break(call, f"answered with a head of more than {MAX_HEAD_BYTES:,} bytes")
        elif self._due > now + call.limits.between_bytes_seconds:
            self._arm(now + call.limits.between_bytes_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        call = self._call
        if call is not None:
            if exc is None and call.ends_with_connection():
                self.on_message_complete()
            else:
                call.failure = connection_lost(exc, call.peer, sending=bool(call.unsent), answering=call.head_done)
            self._end()
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._call is not None:
            self._send_more()

    # llhttp's side.

    def on_message_begin(self) -> None:
        if self._call is None:  # a second answer in the same breath as the first
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._call is not None:
            self._call.headers.append((name, value))

    def on_headers_complete(self) -> None:
        call, status = self._call, self._parser.get_status_code()
        if call is not None and status >= FIRST_FINAL_STATUS:
            self._check(call.end_head(status))
            self._wake(Event.HEAD)

    def on_body(self, data: bytes) -> None:
        call = self._call
        if call is None:
            return
        self._check(call.add(data))
        if call.streamed:
            if call.unread > READ_AHEAD_BYTES and not self._paused and not self.closed:
                self._paused = True
                self._transport.pause_reading()
            self._wake(Event.CHUNK)

    def on_message_complete(self) -> None:
        call = self._call
        if call is None:
            return
        if not call.head_done:
            call.restart_head()
            return
        self._check(call.end_body())
        if self._call is call:
            self.reusable = self._parser.should_keep_alive() and not self.closed and not self._backlog(call)
            self._end()

    # Inside.

    def _send_more(self) -> None:
        call = self._call
        while call is not None and call.unsent and self._writable:
            piece, call.unsent = call.unsent[:SLICE_BYTES], call.unsent[SLICE_BYTES:]
            call.moved_at = self._loop.time()
            self._transport.write(piece)

    def _resume_reading(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    def _backlog(self, call: Call) -> int:
        return len(call.unsent) + self._transport.get_write_buffer_size()

    def _break(self, call: Call, what: str) -> None:
        if self._call is call:
            self.fail(Failure(Reason.PROTOCOL_ERROR, f"{call.peer} {what}"))
        else:
            self.abort()

    def _check(self, failure: Failure | None) -> None:
        if failure is not None:
            self.fail(failure)

    def _wake(self, event: Event) -> None:
        if self._waiter is not None and event >= self._waits_for and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._call is not None:
            self._call.stage = Stage.DONE
            self._call = None
        self._resume_reading()
        self._wake(Event.END)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        """The one timer of a call: rings when a time-out may be due, and looks whether it is."""
        self._timer = None
        call = self._call
        if call is None:
            return
        now = self._loop.time()
        due, reason, allowed = call.next_timeout(now, self._backlog(call), paused=self._paused)
        if now >= due:
            self.fail(timed_out(reason, call.peer, allowed))
        else:
            self._arm(due)
