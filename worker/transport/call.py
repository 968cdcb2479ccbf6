"""One call: how far it is, what it may take, and what has come back so far.

It outlives its turn on the connection, so that the connection can serve the next call while this answer is judged.
"""

import zlib
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum, auto

from promptmill.outcome import Failure, Reason
from worker.transport.inflate import CODINGS, Inflater


class Stage(IntEnum):
    """How far a call is."""

    SENDING = auto()
    THINKING = auto()  # sent, and no byte of the answer yet: that may take as long as the call may
    ANSWERING = auto()
    DONE = auto()


class Event(IntEnum):
    """What a reader can wait for; the end satisfies all of them."""

    HEAD = auto()
    CHUNK = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What one call may take. Defaults and reasons: `UpstreamSettings`."""

    write_seconds: float
    between_bytes_seconds: float
    total_seconds: float
    max_body_bytes: int


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way, and its answer as it comes in."""

    peer: str
    limits: CallLimits
    deadline: float
    moved_at: float  # when a byte last moved, in the direction that matters at this stage
    streamed: bool = False
    stage: Stage = Stage.SENDING
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    backlog: int = 0  # bytes that the system had not taken when we last looked
    received: int = 0
    head_done: bool = False
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: deque[bytes] = field(default_factory=deque)
    unread: int = 0
    failure: Failure | None = None
    _inflater: Inflater | None = None
    _body_bytes: int = 0

    def next_timeout(self, now: float, backlog: int, *, paused: bool) -> tuple[float, Reason, float]:
        """Which time-out is the next one now: when it is due, its name, and what was allowed."""
        limits = self.limits
        reason, allowed = Reason.TOTAL_TIMEOUT, limits.total_seconds
        if self.stage is Stage.SENDING:
            if backlog == 0:
                self.stage = Stage.THINKING
            else:
                if backlog < self.backlog:
                    self.backlog, self.moved_at = backlog, now
                reason, allowed = Reason.WRITE_TIMEOUT, limits.write_seconds
        elif self.stage is Stage.ANSWERING:
            if paused:
                self.moved_at = now  # it is the reader who is late
            reason, allowed = Reason.BETWEEN_BYTES_TIMEOUT, limits.between_bytes_seconds
        if reason is Reason.TOTAL_TIMEOUT or self.deadline <= self.moved_at + allowed:
            return self.deadline, Reason.TOTAL_TIMEOUT, limits.total_seconds
        return self.moved_at + allowed, reason, allowed

    def header(self, name: bytes) -> bytes:
        """The last header of that name (given in lower case), or nothing."""
        return next((value for given, value in reversed(self.headers) if given.lower() == name), b"")

    def restart_head(self) -> None:
        """That head was an interim one (100, 103): the answer is still to come."""
        self.headers = []
        self.received = 0
        self.stage = Stage.THINKING

    def end_head(self, status: int) -> Failure | None:
        """The head is complete: can the body be read?"""
        self.head_done = True
        self.status = status
        for name, value in self.headers:
            lowered = name.lower()
            if lowered == b"content-encoding" and value not in {b"", b"identity"}:
                if value.lower() not in CODINGS:
                    coding = value.decode("latin-1")
                    return Failure(Reason.PROTOCOL_ERROR, f"{self.peer} answered in {coding}, which nobody asked for")
                self._inflater = Inflater()
            elif lowered == b"content-length" and value.isdigit() and int(value) > self.limits.max_body_bytes:
                return self._too_large()
        return None

    def add(self, data: bytes) -> Failure | None:
        """Keep a piece of the body, decoded."""
        if self._inflater is not None:
            try:
                data = self._inflater.feed(data, self.limits.max_body_bytes - self._body_bytes + 1)
            except zlib.error:
                return Failure(Reason.PROTOCOL_ERROR, f"{self.peer} answered with a body whose compression is broken")
        self._body_bytes += len(data)
        if self._body_bytes > self.limits.max_body_bytes:
            return self._too_large()
        if data:
            self.chunks.append(data)
            self.unread += len(data)
        return None

    def end_body(self) -> Failure | None:
        """The last byte is here: is it the end of the body, too?"""
        if self._inflater is not None and not self._inflater.finished:
            return Failure(
                Reason.BODY_TRUNCATED, f"{self.peer} ended its answer before the compressed body was complete"
            )
        return None

    def ends_with_connection(self) -> bool:
        """A body without a length is over when the connection is."""
        return self.head_done and not self.header(b"content-length") and not self.header(b"transfer-encoding")

    def take(self) -> bytes:
        """The next piece that nobody has read yet."""
        data = self.chunks.popleft()
        self.unread -= len(data)
        return data

    def take_all(self) -> bytes:
        """Everything that nobody has read yet."""
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.unread = 0
        return body

    def _too_large(self) -> Failure:
        allowed = self.limits.max_body_bytes
        return Failure(Reason.BODY_TOO_LARGE, f"{self.peer} answered with more than {allowed:,} bytes")
