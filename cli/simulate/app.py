"""The rehearsal endpoint as an ASGI app: one call, top to bottom.

    arrive → read → key → model → limits → answer → limits again, now with its cost → fault → hold → send

It is routed by hand because it has to be faster than what is rehearsed against it. Faults come after the limits, as
in the real world: an overloaded model's 503 is met by those who are let through.
"""

import itertools
import secrets
import time
from collections.abc import Callable
from email.utils import formatdate

from cli.simulate import checks, control, lookups
from cli.simulate.call import Call, Headers, pick_headers
from cli.simulate.config import SimulateConfig
from cli.simulate.delivery import Delivery, deliver
from cli.simulate.door import Door
from cli.simulate.faults import FaultPlan
from cli.simulate.gate import Gate, too_many
from cli.simulate.grain import fraction, grain_of
from cli.simulate.kinds import KINDS, Kind
from cli.simulate.misbehaviour import HARMLESS, misbehave
from cli.simulate.reply import Refusal, Reply
from cli.simulate.stats import Stats
from cli.simulate.wire import ClientGone, RawHeaders, Receive, Scope, Send, Wire


class Simulator:
    """An ASGI application with its own memory; what is public here is for tests in the same process."""

    def __init__(self, config: SimulateConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.stats = Stats()
        self.faults = FaultPlan(config.seed, config.faults)
        self._door = Door(config.api_key, config.models)
        self._gate = Gate(config, clock)
        self.control = control.Control(self.stats, self.faults, self._gate)
        self._request_ids = map(f"req_{secrets.token_hex(6)}{{:012x}}".format, itertools.count(1))
        self._holds = itertools.count()
        self._date = (0, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the simulator speaks http only, not {scope['type']}")
        wire = Wire(scope, receive, send)
        headers = pick_headers(scope["headers"], scope.get("scheme", "http"))
        kind = KINDS.get(scope["path"])
        if kind is not None and scope["method"] == "POST":
            await self._call(kind, wire, headers)
        elif scope["path"].startswith(control.PREFIX):
            await self._control(wire, scope["method"], scope["path"])
        else:
            await self._look_up(wire, headers, scope["method"], scope["path"])

    async def _call(self, kind: Kind, wire: Wire, headers: Headers) -> None:
        self.stats.arrived(kind.path)
        try:
            raw = await wire.read_body()
        except ClientGone:
            self.stats.client_gone += 1
            return
        try:
            call, reply = self._let_in(kind, raw, headers)
        except Refusal as refusal:
            await self._answer_at_once(wire, refusal.as_reply(), headers)
            return
        self.stats.entered(call.model)
        try:
            await self._send(Delivery(wire, reply, self._every_answer(headers.key), self._latency_seconds()), call)
        except ClientGone:
            self.stats.client_gone += 1
        finally:
            self.stats.left()

    def _let_in(self, kind: Kind, raw: bytes, headers: Headers) -> tuple[Call, Reply]:
        """The call with its answer, or a refusal. Nothing is awaited, so nobody else can take what was checked."""
        self._door.check_key(headers.key)
        asked = kind.read(raw, headers)
        model = checks.text(asked.body, "model")
        self._door.check_model(model)
        seed, most = self.config.seed, self.config.max_concurrency
        grain = grain_of(seed, kind.path, asked.canonical)
        call = Call(asked.body, asked.files, model, grain, seed, headers, self.config.answer_tokens)
        if most is not None and self.stats.in_flight >= most:
            message = f"You have reached the limit of {most} concurrent requests."
            raise too_many(message, "dynamic_request_limited", self.config.retry_after_seconds)
        self._gate.check_requests(headers.key)
        reply = kind.answer(call)
        self._gate.pass_through(headers.key, reply.usage.total_tokens)
        return call, reply

    async def _send(self, delivery: Delivery, call: Call) -> None:
        fault = self.faults.next_fault()
        if fault is None:
            status: int | None = await deliver(delivery)
        else:
            self.stats.faults[fault] += 1
            status = await misbehave(fault, delivery, self.config)
        if status is not None:
            self.stats.answered[status] += 1
        if fault is None or fault in HARMLESS:
            usage = delivery.reply.usage
            self.stats.served(call.grain, usage.prompt_tokens, usage.completion_tokens)

    async def _look_up(self, wire: Wire, headers: Headers, method: str, path: str) -> None:
        self.stats.arrived(lookups.counted_as(path))
        try:
            reply = lookups.look_up(method, path, headers, self._door, self.config)
        except Refusal as refusal:
            reply = refusal.as_reply()
        await self._answer_at_once(wire, reply, headers)

    async def _control(self, wire: Wire, method: str, path: str) -> None:
        """Outside of what is counted: looking must not change what is seen."""
        try:
            reply = self.control.answer(method, path, await wire.read_body())
        except Refusal as refusal:
            reply = refusal.as_reply()
        except ClientGone:
            return
        await deliver(Delivery(wire, reply, [], 0.0))

    async def _answer_at_once(self, wire: Wire, reply: Reply, headers: Headers) -> None:
        self.stats.answered[await deliver(Delivery(wire, reply, self._every_answer(headers.key), 0.0))] += 1

    def _latency_seconds(self) -> float:
        """Drawn by the count of calls rather than by the clock, so that a rerun is held alike."""
        low, high = self.config.latency_seconds
        if low == high:
            return low
        return low + (high - low) * fraction(b"%d" % self.config.seed, f"latency{next(self._holds)}")

    def _every_answer(self, key: str) -> RawHeaders:
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode())
        own = [(b"x-request-id", next(self._request_ids).encode()), (b"date", self._date[1])]
        return own + self._gate.headers(key)


def create_app(config: SimulateConfig, *, clock: Callable[[], float] = time.monotonic) -> Simulator:
    """The app for any ASGI server; connection faults need the protocol that `server.py` runs it with."""
    return Simulator(config, clock=clock)
