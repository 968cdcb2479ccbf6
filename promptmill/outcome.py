"""How an attempt ended: a value, never an exception.

`Answer` is what a job was made for; `Failure` has one reason out of a closed list and one question, `retriable`.
What to do about it is decided in `worker/retry.py`; how it was recognised is in `worker/judge.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Reason(StrEnum):
    """Why an attempt did not bring an answer."""

    # The upstream answered with a status.
    RATE_LIMITED = "rate_limited"  # 429: we are above the rate; wait, the attempt is given back
    OVERLOADED = "overloaded"  # 503: the platform is; wait, the attempt is given back
    SERVER_ERROR = "server_error"  # 408, 409, 425 and 5xx but 503
    UNAUTHORIZED = "unauthorized"  # 401
    PAYMENT_REQUIRED = "payment_required"  # 402
    FORBIDDEN = "forbidden"  # 403: the key may not, or this one request is too long (Together)
    NOT_AVAILABLE = "model_not_available"  # 404, or the upstream says that it does not serve the model
    REJECTED = "rejected"  # any other 4xx: this request is wrong, and would be again
    REDIRECTED = "redirected"  # to another host, where the key does not go
    # The connection failed.
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_RESET = "connection_reset"
    CONNECTION_FAILED = "connection_failed"  # unreachable, proxy, whatever else the system says
    DNS_FAILED = "dns_failed"
    TLS_FAILED = "tls_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    WRITE_TIMEOUT = "write_timeout"
    BETWEEN_BYTES_TIMEOUT = "between_bytes_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    # The answer is of no use.
    BODY_TRUNCATED = "body_truncated"
    BODY_NOT_JSON = "body_not_json"
    BODY_HTML = "body_html"  # a proxy's page with status 200
    BODY_INVALID = "body_invalid"  # JSON, but not an answer of this kind (no choices, no data, empty)
    BODY_TOO_LARGE = "body_too_large"
    PROTOCOL_ERROR = "protocol_error"  # not HTTP
    STREAM_BROKEN = "stream_broken"  # whatever it was, after its caller had seen a part: another answer would not fit
    # It never left.
    BAD_REQUEST = "bad_request"  # the job cannot be turned into a request (its file is gone, …)
    STOPPED = "stopped"  # a shutdown or a halted lane; the attempt is given back
    NOT_RECORDED = "not_recorded"  # answered, but the database refuses this answer
    BATCH_CANCELLED = "batch_cancelled"  # somebody cancelled its batch, and had the calls under way aborted
    JOB_CANCELLED = "job_cancelled"  # the same of a single job
    WORKER_LOST = "worker_lost"  # the worker died with the call out: whether it was answered is not known


#: Waiting is not failing: these give the attempt back.
WAITS = frozenset({Reason.RATE_LIMITED, Reason.OVERLOADED, Reason.STOPPED})
#: A second try may well succeed; bounded by max_attempts.
TRANSIENT = frozenset(
    {
        Reason.SERVER_ERROR,
        Reason.CONNECTION_REFUSED,
        Reason.CONNECTION_RESET,
        Reason.CONNECTION_FAILED,
        Reason.DNS_FAILED,
        Reason.CONNECT_TIMEOUT,
        Reason.WRITE_TIMEOUT,
        Reason.BETWEEN_BYTES_TIMEOUT,
        Reason.TOTAL_TIMEOUT,
        Reason.BODY_TRUNCATED,
        Reason.BODY_NOT_JSON,
        Reason.BODY_HTML,
        Reason.BODY_INVALID,
        Reason.PROTOCOL_ERROR,
    }
)
#: The key, the account, the model or the address is wrong for every job of the lane, not just for this one.
LANE_FAULTS = frozenset(
    {
        Reason.UNAUTHORIZED,
        Reason.PAYMENT_REQUIRED,
        Reason.FORBIDDEN,
        Reason.NOT_AVAILABLE,
        Reason.REDIRECTED,
        Reason.TLS_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the upstream counted them; 0 where it says nothing."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion; reasoning is part of the completion, cached of the prompt."""
        return self.prompt_tokens + self.completion_tokens


_NONE: Mapping[str, str] = MappingProxyType({})


def _no_headers() -> Mapping[str, str]:
    return _NONE


@dataclass(frozen=True, slots=True)
class Answer:
    """The upstream's answer, kept as it came. `headers` are those that a caller who waits is to see."""

    status: int
    content_type: str
    body: bytes
    usage: Usage = field(default_factory=Usage)
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=_no_headers)


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that brought no answer.

    `message` is one sentence for people: the upstream's own words where it had any. `status`, `content_type` and
    `body` are the upstream's answer, where there was one, and `headers` those that a caller who waits is to see.
    `retry_after_seconds` is what it asked us to wait.
    """

    reason: Reason
    message: str
    status: int | None = None
    content_type: str = ""
    body: bytes = b""
    retry_after_seconds: float | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=_no_headers)

    @property
    def retriable(self) -> bool:
        """May the same request succeed later?"""
        return self.reason in TRANSIENT or self.reason in WAITS


Outcome = Answer | Failure
