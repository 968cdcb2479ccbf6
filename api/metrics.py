"""/metrics, in Prometheus' format: what the database knows, and what this process sees of its callers.

It counts what is of all tenants, so with keys in use it takes an admin's.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from api.auth import AdminIs
from api.openapi import refusals
from api.state import House, HouseIs
from promptmill.store import measures
from promptmill.store.measures import Measures
from promptmill.store.sums import BEYOND_SECONDS

router = APIRouter(tags=["health"])

#: What was read is good for so long: a million unfinished jobs take a moment to count.
FRESH_SECONDS: Final = 2.0
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_LANE: Final = ("upstream", "model")


class Traffic:
    """What this process sees at its door."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "promptmill_http_requests", "Requests, by path and status.", ("method", "path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "promptmill_http_request_seconds", "From a request's first byte to its answer's last.", ("path",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._held = Gauge(
            "promptmill_held_requests", "Callers of this process who wait for a job's answer.", registry=self.registry
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """A request is over."""
        route = scope.get("route")
        path = getattr(route, "path", "unknown")  # never what the caller wrote: it may be a secret, and is without end
        self._requests.labels(scope["method"], path[:100], str(status)).inc()
        self._seconds.labels(path[:100]).observe(seconds)

    def held(self, count: int) -> None:
        """So many wait now."""
        self._held.set(count)


class Meter:
    """Reads the database's side, at most every moment however many ask."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._measures = Measures()
        self._reading = asyncio.Lock()

    async def measures(self, house: House) -> Measures:
        """As it was a moment ago at most."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at >= FRESH_SECONDS:
                self._measures = await measures.read(house.db, now=house.clock())
                self._read_at = now
            return self._measures


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **refusals(),
    },
)
async def metrics(house: HouseIs, _admin: AdminIs) -> Response:
    """Jobs by state and lane, calls in flight, attempts by outcome, latencies, tokens, waits by cause."""
    registry = CollectorRegistry()
    registry.register(_Collected(await house.meter.measures(house), house.clock()))
    house.traffic.held(house.waiting.count)
    return Response(generate_latest(registry) + generate_latest(house.traffic.registry), media_type=CONTENT_TYPE_LATEST)


class _Collected(Collector):
    """What was read, as Prometheus has it."""

    def __init__(self, found: Measures, now: float) -> None:
        self._found = found
        self._now = now

    def collect(self) -> Iterable[Metric]:
        found = self._found
        yield _gauge("jobs", "Jobs that are not finished.", (*_LANE, "state"), found.unfinished)
        # No counter: a job that is tried again is not finished any more.
        yield _gauge(
            "jobs_finished", "Jobs that are finished.", ("state",), {(s,): n for s, n in found.finished.items()}
        )
        yield _gauge("batches", "Batches.", ("state",), {(state,): n for state, n in found.batches.items()})
        yield _gauge("workers", "Workers that are alive.", (), {(): found.workers})
        yield _gauge("in_flight", "Calls under way.", (), {(): found.in_flight})
        states = {(upstream, model, state): 1 for upstream, model, state, _ in found.lanes}
        yield _gauge("lane_state", "What is known of each lane: unknown, open or halted.", (*_LANE, "state"), states)
        pauses = {(u, m): max(0.0, (until or 0.0) - self._now) for u, m, _, until in found.lanes}
        yield _gauge("lane_paused_seconds", "For how long a lane is still paused.", _LANE, pauses)
        yield _gauge("waits", "Workers that start no more calls now, by cause.", (*_LANE, "cause"), found.waits)
        yield from self._calls()
        yield self._latencies()

    def _calls(self) -> Iterable[Metric]:
        calls = CounterMetricFamily("promptmill_attempts", "Upstream calls.", labels=(*_LANE, "outcome"))
        tokens = CounterMetricFamily(
            "promptmill_tokens", "Tokens, as the upstream counted them.", labels=(*_LANE, "type")
        )
        spent: dict[tuple[str, str, str], int] = {}
        for (upstream, model, outcome), (count, _, prompt, completion) in sorted(self._found.outcomes.items()):
            calls.add_metric([upstream, model, outcome], count)
            for kind, number in (("prompt", prompt), ("completion", completion)):
                spent[upstream, model, kind] = spent.get((upstream, model, kind), 0) + number
        for labels, number in sorted(spent.items()):
            tokens.add_metric(labels, number)
        yield calls
        yield tokens

    def _latencies(self) -> Metric:
        family = HistogramMetricFamily("promptmill_answer_seconds", "How long answered calls took.", labels=_LANE)
        for lane, bounds in sorted(self._found.latencies.items()):
            total = 0
            buckets = []
            for bound, calls in sorted(bounds.items()):
                total += calls
                if bound < BEYOND_SECONDS:
                    buckets.append((f"{bound:g}", total))
            seconds = self._found.outcomes.get((*lane, "succeeded"), (0, 0.0, 0, 0))[1]
            family.add_metric(lane, [*buckets, ("+Inf", total)], seconds)
        return family


def _gauge(name: str, words: str, labels: Sequence[str], values: Mapping[Any, float]) -> GaugeMetricFamily:
    """`values` are by the labels' values."""
    family = GaugeMetricFamily(f"promptmill_{name}", words, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
