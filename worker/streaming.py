"""An answer that is passed on while it comes: for a body with `"stream": true`, whose caller reads along.

Nothing is said until the first event is complete, so a refusal that comes as an event (some upstreams answer 200, and
then that they are overloaded) is tried again like any other. What was said cannot be taken back: another attempt would
bring another answer, so from then on this attempt is the job's last, however it ends.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
import msgspec

from promptmill.hints import Hints, JobKey, Piece
from promptmill.kinds import lenient
from promptmill.outcome import Answer, Failure, Outcome, Reason, Usage
from worker.judge import SUCCESS, Expectation, judge, request_id_of
from worker.upstream import Reply, StreamedReply, Upstream

_EVENTS: Final = "text/event-stream"
#: With these, an answer of a kind that is otherwise bytes is no such answer: a refusal, or a proxy's page.
_NOT_BYTES: Final = frozenset({"application/json", "text/html"})
_DATA: Final = b"data:"
_END: Final = b"[DONE]"
_NO_USAGE: Final = Usage()


class _Said(msgspec.Struct):
    error: Any = None


_SAID: Final = msgspec.json.Decoder(_Said)


async def streamed(
    upstream: Upstream,
    request: httpx.Request,
    *,
    job: JobKey,
    epoch: int,
    hints: Hints,
    expects: Expectation,
    clock: Callable[[], float],
) -> tuple[Outcome, httpx.Headers | None]:
    """Send a request whose answer is a stream, and say its pieces; also returns the headers that came."""
    async with upstream.stream(request) as reply:
        if isinstance(reply, Failure):
            return reply, None
        relay = _Relay(reply, job, epoch, hints, expects, clock)
        if reply.status // 100 == SUCCESS and (relay.has_events or _is_bytes(relay.media_type, expects)):
            return await relay.pass_on(), reply.headers
        outcome = judge(await upstream.whole(reply), expects=expects, now=clock())
        if isinstance(outcome, Answer):
            await hints.piece(Piece(job, epoch, 0, outcome.body, outcome.content_type))
        return outcome, reply.headers


def _is_bytes(media_type: str, expects: Expectation) -> bool:
    return not expects.json and media_type not in _NOT_BYTES


@dataclass(slots=True)
class _Relay:
    """One answer on its way."""

    reply: StreamedReply
    job: JobKey
    epoch: int
    hints: Hints
    expects: Expectation
    clock: Callable[[], float]
    body: bytearray = field(default_factory=bytearray)
    said: int = 0  # bytes of it

    @property
    def content_type(self) -> str:
        value: str = self.reply.headers.get("content-type", "")
        return value

    @property
    def media_type(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def has_events(self) -> bool:
        return self.media_type == _EVENTS

    async def pass_on(self) -> Outcome:
        """Until the end, or until it is clear that there is no answer."""
        try:
            async for chunk in self.reply.chunks:
                if isinstance(chunk, Failure):
                    return self._broken(chunk.message) if self.said else chunk
                self.body += chunk
                if not self.said and self.has_events:
                    first = next(_events(self._complete_lines()), None)
                    if first is None:
                        continue
                    if _is_error(first):
                        return self._refused(first)
                await self._say()
            return await self._ended()
        except asyncio.CancelledError:
            if not self.said:
                raise
            return self._broken("stopped before it was answered in full")

    async def _ended(self) -> Outcome:
        """The upstream has nothing more to say, and no complaint about the connection."""
        body = bytes(self.body)
        if not self.has_events:
            outcome = judge(self._reply(body), expects=self.expects, now=self.clock())
            return self._broken(outcome.message) if isinstance(outcome, Failure) and self.said else outcome
        events = [event for event in _events(body.splitlines()) if event != _END]
        if not events:
            message = "the stream ended without an event"
            return self._broken(message) if self.said else self._no_answer(message)
        if _is_error(events[-1]):
            refused = self._refused(events[-1])
            return self._broken(refused.message) if self.said else refused
        await self._say()  # the last line, where it has no end
        return Answer(
            status=self.reply.status,
            content_type=self.content_type,
            body=body,
            usage=self._usage(events),
            request_id=request_id_of(self.reply.headers),
        )

    async def _say(self) -> None:
        offset, self.said = self.said, len(self.body)
        if offset < self.said:
            await self.hints.piece(Piece(self.job, self.epoch, offset, bytes(self.body[offset:]), self.content_type))

    def _complete_lines(self) -> list[bytes]:
        return bytes(self.body[: max(self.body.rfind(b"\n"), self.body.rfind(b"\r")) + 1]).splitlines()

    def _reply(self, body: bytes) -> Reply:
        return Reply(self.reply.status, self.reply.headers, body, 0.0)

    def _usage(self, events: list[bytes]) -> Usage:
        """Of the last event that counts: some count in each one, and some write null in all but one."""
        counted = (self.expects.usage(event) for event in reversed(events) if b'"usage"' in event)
        return next((usage for usage in counted if usage != _NO_USAGE), _NO_USAGE)

    def _refused(self, event: bytes) -> Failure:
        """An event with an error means what an answer with status 200 and an error in it means."""
        outcome = judge(self._reply(event), expects=replace(self.expects, json=True), now=self.clock())
        if isinstance(outcome, Failure):
            return replace(outcome, content_type="application/json")
        return self._no_answer("the stream brought an error")

    def _no_answer(self, message: str) -> Failure:
        headers = self.reply.headers
        return Failure(
            Reason.BODY_INVALID, message, self.reply.status, self.content_type, bytes(self.body),
            request_id=request_id_of(headers),
        )  # fmt: skip

    def _broken(self, message: str) -> Failure:
        words = f"{message}; a part of the answer had been passed on, so it is not tried again"
        return replace(self._no_answer(words), reason=Reason.STREAM_BROKEN)


def _events(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each event. (One that spreads over several lines is none of those that this program looks into.)"""
    return (line[len(_DATA) :].strip() for line in lines if line.startswith(_DATA))


def _is_error(event: bytes) -> bool:
    if b'"error"' not in event:
        return False
    try:
        return bool(lenient.decode(_SAID, event).error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
