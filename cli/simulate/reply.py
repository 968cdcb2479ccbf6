"""An answer before it is sent: computed whole, so that its usage is known when the limits ask what the call costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

JSON = b"application/json"

_encode = msgspec.json.Encoder().encode


class Usage(NamedTuple):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_json(self) -> dict[str, Any]:
        """The usage of the kinds that write text."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


NO_USAGE = Usage()


@dataclass(slots=True)
class Reply:
    """Status, body and cost. A reply with `events` is sent as an SSE stream, and has no body."""

    status: int
    content_type: bytes
    body: bytes = b""
    events: tuple[bytes, ...] = ()
    usage: Usage = NO_USAGE
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def of_json(cls, content: object, *, usage: Usage = NO_USAGE, status: int = 200) -> "Reply":
        return cls(status=status, content_type=JSON, body=_encode(content), usage=usage)


class Refusal(Exception):  # noqa: N818 - an answer that leaves early, not a fault of ours
    """A call that is answered with an error, in the envelope that the SDKs read."""

    def __init__(  # the envelope's fields, in its order
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        beside: Mapping[str, Any] | None = None,
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        #: What the JSON body is, whole; `beside` goes next to the envelope.
        self.content = {"error": {"message": message, "type": type_, "param": param, "code": code}, **(beside or {})}
        self.retry_after_seconds = retry_after_seconds

    def as_reply(self) -> Reply:
        reply = Reply.of_json(self.content, status=self.status)
        if self.retry_after_seconds > 0:
            reply.headers = retry_headers(self.retry_after_seconds)
        return reply


def retry_headers(seconds: float) -> list[tuple[bytes, bytes]]:
    """Whole seconds, rounded up, for those who read the standard; milliseconds for the SDKs, which prefer them."""
    milliseconds = max(1, -int(-seconds * 1000 // 1))
    return [(b"retry-after", b"%d" % -(-milliseconds // 1000)), (b"retry-after-ms", b"%d" % milliseconds)]
