"""How an answer reaches the client: held for its latency, then sent whole or as a stream spread over it."""

from typing import NamedTuple

from cli.simulate.reply import Reply
from cli.simulate.wire import RawHeaders, Wire

#: A stream's first event comes after this share of the latency, the others evenly over the rest.
_FIRST_EVENT_SHARE = 0.25


class Delivery(NamedTuple):
    wire: Wire
    reply: Reply
    #: What goes out with every answer: request id, date, limits.
    headers: RawHeaders
    latency_seconds: float


async def deliver(delivery: Delivery) -> int:
    """Send it as it should be; returns the status sent."""
    wire, reply = delivery.wire, delivery.reply
    if not reply.events:
        await wire.hold(delivery.latency_seconds)
        await wire.start(reply.status, length_headers(delivery, len(reply.body)))
        await wire.write(reply.body, more=False)
        return reply.status
    first_seconds = delivery.latency_seconds * _FIRST_EVENT_SHARE
    await wire.hold(first_seconds)
    await wire.start(reply.status, stream_headers(delivery))
    if delivery.latency_seconds > 0:
        await wire.write_each(reply.events, (delivery.latency_seconds - first_seconds) / len(reply.events))
    else:
        await wire.write(b"".join(reply.events), more=False)
    return reply.status


def length_headers(delivery: Delivery, length: int) -> RawHeaders:
    own: RawHeaders = [(b"content-type", delivery.reply.content_type), (b"content-length", b"%d" % length)]
    return own + delivery.reply.headers + delivery.headers


def stream_headers(delivery: Delivery) -> RawHeaders:
    own: RawHeaders = [(b"content-type", delivery.reply.content_type), (b"cache-control", b"no-cache")]
    return own + delivery.headers
