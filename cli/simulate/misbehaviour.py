"""What each fault does to an answer that was ready to be sent.

A refusal (4xx) comes at once, as refusals do; everything else goes wrong after the latency, which is when it costs
a client most.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from cli.simulate.config import SimulateConfig
from cli.simulate.delivery import Delivery, deliver, length_headers, stream_headers
from cli.simulate.faults import is_status
from cli.simulate.reply import JSON, Refusal, Reply

#: The faults under which the client still gets its whole, right answer.
HARMLESS = frozenset({"slow", "drip"})

_SLOWNESS = 10
_SLOW_AT_LEAST_SECONDS = 1.0  # ten times nothing would be nothing
_SERVER_ERRORS = 500
_REQUEST_TIMEOUT = 408
_ANSWER_KEYS = ("choices", "data", "results", "text", "segments")
_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body><h1>Gateway</h1></body></html>\n"
_BROKEN_JSON = b'{"id": "rehearsal", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assi'

#: Status → (type, code, message), in providers' words where they have some.
_STATUSES: Mapping[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", "invalid_request", "The request is invalid (simulated)."),
    401: ("invalid_request_error", "invalid_api_key", "Invalid API key provided (simulated)."),
    402: ("credit_limit", "insufficient_credits", "Credit limit exceeded: please add credits (simulated)."),
    403: ("permission_error", "forbidden", "You are not allowed to use this model (simulated)."),
    404: ("invalid_request_error", "model_not_available", "Unable to access model (simulated)."),
    408: ("timeout_error", "request_timeout", "The request timed out (simulated)."),
    422: ("invalid_request_error", "unprocessable", "The request could not be processed (simulated)."),
    429: ("dynamic_request_limited", "rate_limit_exceeded", "You are above your dynamic rate: slow down (simulated)."),
    500: ("server_error", None, "The server had an error while processing your request (simulated)."),
    502: ("server_error", None, "Bad gateway (simulated)."),
    503: ("service_unavailable", "model_overloaded", "The model is overloaded: try again later (simulated)."),
    504: ("server_error", None, "Gateway timeout (simulated)."),
}
_TOLD_WHEN_TO_RETRY = (429, 503)


async def misbehave(fault: str, delivery: Delivery, config: SimulateConfig) -> int | None:
    """Deliver it wrongly; returns the status that the client was sent, or None when it got no whole answer."""
    if is_status(fault):
        return await _refuse(int(fault), delivery, config)
    return await _NAMED[fault](delivery, config)


async def _refuse(status: int, delivery: Delivery, config: SimulateConfig) -> int:
    type_, code, message = _STATUSES.get(status, ("simulated_error", None, f"Status {status} (simulated)."))
    beside = {"error_type": type_} if status == 429 else None  # noqa: PLR2004 - a status reads best as its number
    retry_after = config.retry_after_seconds if status in _TOLD_WHEN_TO_RETRY else 0.0
    refusal = Refusal(status, message, type_=type_, code=code, beside=beside, retry_after_seconds=retry_after)
    at_once = status < _SERVER_ERRORS and status != _REQUEST_TIMEOUT
    latency = 0.0 if at_once else delivery.latency_seconds
    return await deliver(delivery._replace(reply=refusal.as_reply(), latency_seconds=latency))


async def _reset(delivery: Delivery, _: SimulateConfig) -> None:
    await delivery.wire.hold(delivery.latency_seconds)
    await delivery.wire.reset()


async def _close(delivery: Delivery, _: SimulateConfig) -> None:
    await delivery.wire.hold(delivery.latency_seconds)
    await delivery.wire.close()


async def _truncated(delivery: Delivery, _: SimulateConfig) -> None:
    wire, reply = delivery.wire, delivery.reply
    await wire.hold(delivery.latency_seconds)
    if reply.events:
        await wire.start(reply.status, stream_headers(delivery))
        await wire.write(b"".join(reply.events[: len(reply.events) // 2]), more=True)
    else:
        await wire.start(reply.status, length_headers(delivery, len(reply.body)))
        await wire.write(reply.body[: len(reply.body) // 2], more=True)
    await wire.close()


async def _html(delivery: Delivery, _: SimulateConfig) -> int:
    return await deliver(delivery._replace(reply=Reply(200, b"text/html; charset=utf-8", _HTML)))


async def _notjson(delivery: Delivery, _: SimulateConfig) -> int:
    return await deliver(delivery._replace(reply=Reply(200, JSON, _BROKEN_JSON)))


async def _empty(delivery: Delivery, _: SimulateConfig) -> int:
    return await deliver(delivery._replace(reply=Reply(200, JSON)))


async def _nochoices(delivery: Delivery, _: SimulateConfig) -> int:
    content: Any = msgspec.json.decode(delivery.reply.body) if delivery.reply.content_type == JSON else {}
    kept = {name: value for name, value in content.items() if name not in _ANSWER_KEYS}
    return await deliver(delivery._replace(reply=Reply.of_json(kept)))


async def _hang(delivery: Delivery, config: SimulateConfig) -> None:
    await delivery.wire.hold(config.hang_seconds)
    await delivery.wire.close()


async def _slow(delivery: Delivery, _: SimulateConfig) -> int:
    seconds = max(_SLOW_AT_LEAST_SECONDS, delivery.latency_seconds * _SLOWNESS)
    return await deliver(delivery._replace(latency_seconds=seconds))


async def _drip(delivery: Delivery, config: SimulateConfig) -> int:
    wire, reply = delivery.wire, delivery.reply
    await wire.hold(delivery.latency_seconds)
    body = b"".join(reply.events) or reply.body
    await wire.start(reply.status, stream_headers(delivery) if reply.events else length_headers(delivery, len(body)))
    await wire.write_each([body[at : at + 1] for at in range(len(body))], config.drip_seconds)
    return reply.status


_NAMED: Mapping[str, Callable[[Delivery, SimulateConfig], Awaitable[int | None]]] = {
    "reset": _reset,
    "close": _close,
    "truncated": _truncated,
    "html": _html,
    "notjson": _notjson,
    "empty": _empty,
    "nochoices": _nochoices,
    "hang": _hang,
    "slow": _slow,
    "drip": _drip,
}
