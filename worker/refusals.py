"""Reads what an upstream says when it refuses, and what it means: every gateway has its own way to say no.

The words are the upstream's own, made fit to print. The meaning comes from the status first; from type, code and words
only where the status is not enough (OpenAI answers 429 to an empty account, Together 400 to a model it does not serve).
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from promptmill.outcome import Reason

MAX_MESSAGE_CHARACTERS = 1000
#: Of a page or a text that is not made for programs, less will do.
MAX_TEXT_CHARACTERS = 300
#: A refusal larger than this is not read as JSON.
MAX_READ_BYTES = 1024 * 1024

_BY_STATUS = {
    401: Reason.UNAUTHORIZED,
    402: Reason.PAYMENT_REQUIRED,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_AVAILABLE,
    407: Reason.CONNECTION_FAILED,  # it is the proxy that speaks
    408: Reason.SERVER_ERROR,
    409: Reason.SERVER_ERROR,
    425: Reason.SERVER_ERROR,
    429: Reason.RATE_LIMITED,
    503: Reason.OVERLOADED,
}
_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_not_active", "billing_hard_limit_reached"})
_NO_SUCH_MODEL = frozenset({"model_not_available", "model_not_found", "model_not_supported", "unsupported_model"})
_NO_SUCH_MODEL_WORDS = re.compile(
    r"unable to access (non-serverless )?model"
    r"|\bmodel\b[^\n]{0,120}?\b(does not exist|not found|not currently (supported|available)|not available)"
    r"|\b(no such|unknown|not a valid) model\b",
    re.IGNORECASE,
)
#: These speak of the model, too, but it is the request that is too long.
_TOO_LONG_WORDS = re.compile(r"context[ _-]?(length|window)|too long|too many tokens|max_(new_)?tokens", re.IGNORECASE)

#: What an error in an answer with status 200 says of itself, in its type and code. The first that fits holds.
_BY_WORDS = (
    (re.compile(r"rate_?limit|too_?many_?requests|throttl"), Reason.RATE_LIMITED),
    (re.compile(r"overloaded|unavailable"), Reason.OVERLOADED),
    (re.compile(r"authentication|invalid_api_key|unauthorized"), Reason.UNAUTHORIZED),
    (
        re.compile(r"invalid|bad_?request|validation|context_length|policy|filter|unsupported|too_large"),
        Reason.REJECTED,
    ),
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the upstream says: a sentence, and the names that it has for it (lower case)."""

    message: str = ""
    type: str = ""
    code: str = ""


def explained(body: bytes) -> Explanation:
    """From the body of a refusal: JSON of any dialect, an HTML page, or text."""
    if len(body) <= MAX_READ_BYTES:
        try:
            return explained_by(json.loads(body))
        except (ValueError, RecursionError):
            pass
    text = body[:MAX_READ_BYTES].decode("utf-8", "replace")
    if looks_like_html(body):
        title = re.search(r"<(title|h1)[^>]*>(.*?)</\1", text, re.IGNORECASE | re.DOTALL)
        text = f"an HTML page: {title[2]}" if title else "an HTML page"
    return Explanation(printable(text, MAX_TEXT_CHARACTERS))


def explained_by(value: Any) -> Explanation:
    """From JSON: {"error": {"message"}}, {"error": text}, {"message"}, {"detail": text or list}, {"errors": [...]}."""
    outer = value if isinstance(value, dict) else {"message": value}
    error = outer.get("error") or outer
    inner = error if isinstance(error, dict) else {"message": error}
    message = next((inner[name] for name in ("message", "detail", "errors", "error", "title") if inner.get(name)), "")
    return Explanation(
        message=printable(_sentence(message), MAX_MESSAGE_CHARACTERS),
        type=_name(inner.get("type") or outer.get("type")),
        code=_name(inner.get("code") or outer.get("code")),
    )


def reason_for(status: int, explanation: Explanation) -> Reason:
    """What a status means, which is not always what it says."""
    if status == HTTPStatus.TOO_MANY_REQUESTS and _OUT_OF_MONEY & {explanation.type, explanation.code}:
        return Reason.PAYMENT_REQUIRED
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Reason.SERVER_ERROR
    if status >= HTTPStatus.BAD_REQUEST:
        return Reason.NOT_AVAILABLE if _names_a_missing_model(explanation) else Reason.REJECTED
    return Reason.PROTOCOL_ERROR


def reason_within(explanation: Explanation) -> Reason:
    """What an error means that came with status 200: some gateways put the status into its code."""
    if explanation.code.isdigit() and int(explanation.code) >= HTTPStatus.BAD_REQUEST:
        return reason_for(int(explanation.code), explanation)
    if _OUT_OF_MONEY & {explanation.type, explanation.code}:
        return Reason.PAYMENT_REQUIRED
    if _names_a_missing_model(explanation):
        return Reason.NOT_AVAILABLE
    words = f"{explanation.type} {explanation.code}"
    if _TOO_LONG_WORDS.search(explanation.message):
        return Reason.REJECTED
    return next((reason for pattern, reason in _BY_WORDS if pattern.search(words)), Reason.SERVER_ERROR)


def looks_like_html(body: bytes) -> bool:
    """By its first bytes."""
    start = body[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head"))


def printable(text: str, limit: int) -> str:
    """One line without control characters, cut where it gets long."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text[: 2 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _names_a_missing_model(explanation: Explanation) -> bool:
    if _NO_SUCH_MODEL & {explanation.type, explanation.code}:
        return True
    message = explanation.message
    return bool(_NO_SUCH_MODEL_WORDS.search(message)) and not _TOO_LONG_WORDS.search(message)


def _sentence(value: Any) -> str:
    """Text, or the sentences of a list (FastAPI's {"loc", "msg"}, others' {"message"})."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        place = ".".join(str(part) for part in _items(value.get("loc")))
        said = str(value.get("msg") or value.get("message") or json.dumps(value))
        return f"{place}: {said}" if place else said
    if isinstance(value, list):
        return "; ".join(_sentence(each) for each in value[:10])
    return "" if value is None else str(value)


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _name(value: Any) -> str:
    return str(value).lower() if isinstance(value, str | int) else ""
