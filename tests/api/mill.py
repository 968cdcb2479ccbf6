"""The HTTP door and a worker behind it in one loop, as `promptmill serve` has them, with an endpoint that is told what
to answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from promptmill.engine import Database
from promptmill.hints import Listener, LocalHints
from promptmill.settings import load
from tests.api.server import Serving, serving
from tests.worker.endpoint import Answers, Endpoint, endpoint
from worker.attempt import Desk
from worker.drain import Drain, DrainTerms
from worker.limits.memory import MemoryLimiter


@dataclass
class Mill:
    """A server, its upstream, and the worker between them."""

    serving: Serving
    upstream: Endpoint | None
    drain: Drain

    @property
    def client(self):
        return self.serving.client

    async def chat(self, text: str = "Hello?", *, headers=None, client=None, **others):
        """POST a chat."""
        return await (client or self.client).post(
            "/v1/chat/completions", json=chat_body(text, **others), headers=headers
        )


def chat_body(text: str = "Hello?", *, model: str = "test/plain", **others):
    return {"model": model, "messages": [{"role": "user", "content": text}], **others}


@asynccontextmanager
async def mill(db: Database, answers: Answers, **overrides) -> AsyncIterator[Mill]:
    """`overrides` are settings; `answers` is the upstream's part."""
    async with endpoint(answers) as upstream, mill_at(db, upstream.url, **overrides) as made:
        made.upstream = upstream
        yield made


@asynccontextmanager
async def mill_at(db: Database, url: str, **overrides) -> AsyncIterator[Mill]:
    """The same before an upstream of the test's own."""
    async with (
        _working(db, url, overrides) as (hints, drain),
        serving(db, hints=hints, base_url=url, **overrides) as server,
    ):
        yield Mill(server, None, drain)


@asynccontextmanager
async def _working(db: Database, url: str, overrides):
    settings = load({}, base_url=url, grace_seconds=0.0, **{k: v for k, v in overrides.items() if k != "grace_seconds"})
    hints, stop = LocalHints(), asyncio.Event()
    desk = Desk(settings, clock=time.time, hints=hints)
    terms = DrainTerms(worker_name="test")
    drain = Drain(db, settings, desk, MemoryLimiter(time.time), terms, clock=time.time, hints=hints)
    async with hints.listening(Listener(work=drain.wake)):
        work = asyncio.create_task(drain.run(stop))
        try:
            yield hints, drain
        finally:
            stop.set()
            await work
            await desk.aclose()
