"""Says what an answer is worth, so that the rest of the program knows answers and failures, and no statuses.

Pure: a `Reply` and what its kind expects go in, an `Outcome` comes out. The hot path, a good JSON answer, is one pass
of msgspec over the body; everything else may take its time. What to do about a failure is decided in `retry.py`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import msgspec

from promptmill.outcome import Answer, Failure, Outcome, Reason, Usage
from worker.refusals import Explanation, explained, explained_by, looks_like_html, printable, reason_for, reason_within
from worker.retry_after import retry_after_seconds
from worker.upstream import Reply

#: Of an answer that is of no use, more than this is not kept.
MAX_KEPT_BYTES = 64 * 1024
SUCCESS = 2  # as in 2xx
_REQUEST_IDS = ("x-request-id", "x-amzn-requestid", "cf-ray")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a kind expects of an answer. The callables must not raise."""

    #: A JSON answer. False takes what comes: speech, transcriptions as text.
    json: bool
    #: What is wrong with a body that is otherwise good, or None.
    valid: Callable[[bytes], str | None]
    #: What the upstream says that it cost.
    usage: Callable[[bytes], Usage]


class _Envelope(msgspec.Struct):
    """The one field that matters to everybody; the rest is checked for its syntax and skipped."""

    error: msgspec.Raw = msgspec.Raw(b"null")


_envelope = msgspec.json.Decoder(_Envelope)
_nothing = msgspec.Raw(b"null")


def judge(reply: Reply | Failure, *, expects: Expectation, now: float) -> Outcome:
    """What became of the attempt. `now` is the wall clock, for a Retry-After that names a date."""
    if isinstance(reply, Failure):
        return reply
    if reply.status // 100 != SUCCESS:
        explanation = explained(reply.body)
        return _refused(reply, reason_for(reply.status, explanation), explanation, now)
    body = reply.body
    if expects.json:
        try:
            body, error = _read(body)
        except ValueError as problem:
            return _unreadable(reply, str(problem))
        if error is not None:
            return _refused(reply, reason_within(error), error, now)
    elif not body or _is_html(reply):
        return _unreadable(reply, "")
    wrong = expects.valid(body)
    if wrong is not None:
        return _failure(reply, Reason.BODY_INVALID, wrong)
    return Answer(
        status=reply.status,
        content_type=reply.headers.get("content-type", ""),
        body=reply.body,
        usage=expects.usage(body),
        request_id=request_id_of(reply.headers),
    )


def _read(body: bytes) -> tuple[bytes, Explanation | None]:
    """The body as msgspec can read it, and the error that is in it, if any. Raises ValueError for what is not JSON.

    Lone surrogates, bare control characters, NaN and byte order marks are wrong, and upstreams send them. msgspec
    refuses them; json need not. The answer is paid for and is kept as it came; only its readers get it in order.
    """
    try:
        raw = _envelope.decode(body).error
    except (msgspec.DecodeError, RecursionError):
        try:
            value = json.loads(body.decode("utf-8-sig"), strict=False, parse_constant=lambda _: None)
        except RecursionError as problem:
            raise ValueError("nested too deeply") from problem
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        error = value.get("error") if isinstance(value, dict) else None
    else:
        error = None if raw == _nothing else json.loads(bytes(raw))
    return body, explained_by({"error": error}) if error else None


def _refused(reply: Reply, reason: Reason, explanation: Explanation, now: float) -> Failure:
    """The upstream says no, in its own words."""
    wait = retry_after_seconds(reply.headers, reply.status, now)
    message = explanation.message
    if not message:
        known = reply.status in HTTPStatus._value2member_map_
        phrase = f" {HTTPStatus(reply.status).phrase}" if known else ""
        message = f"HTTP {reply.status}{phrase}, without an explanation"
    return _failure(reply, reason, message, wait)


def _unreadable(reply: Reply, problem: str) -> Failure:
    """Status 200 and not an answer at all."""
    if not reply.body.strip():
        return _failure(reply, Reason.BODY_INVALID, "the answer is empty")
    if _is_html(reply):
        page = explained(reply.body).message
        return _failure(reply, Reason.BODY_HTML, f"instead of an answer came {page}; is there a proxy in between?")
    start = printable(reply.body[:200].decode("utf-8", "replace"), 80)
    return _failure(reply, Reason.BODY_NOT_JSON, f"the answer is not JSON ({problem}); it begins: {start}")


def _failure(reply: Reply, reason: Reason, message: str, wait: float | None = None) -> Failure:
    return Failure(
        reason=reason,
        message=message,
        status=reply.status,
        content_type=reply.headers.get("content-type", ""),
        body=reply.body[:MAX_KEPT_BYTES],
        retry_after_seconds=wait,
        request_id=request_id_of(reply.headers),
    )


def _is_html(reply: Reply) -> bool:
    return "text/html" in reply.headers.get("content-type", "").lower() or looks_like_html(reply.body)


def request_id_of(headers: httpx.Headers) -> str | None:
    """The upstream's name for the call, whichever header it is in."""
    for name in _REQUEST_IDS:
        value: str | None = headers.get(name)
        if value:
            return value
    return None
