"""The HTTP door: `uvicorn api.app:create_app --factory`. Puts the parts together; nothing happens at import."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api import (
    batch_control,
    batch_jobs,
    batches,
    control,
    events,
    files,
    gateway,
    health,
    job_control,
    jobs,
    metrics,
    models,
    openapi,
    schedule_fires,
    schedules,
    tenants,
    together_files,
    together_parts,
    uploads,
)
from api.admitter import AT_ONCE, Admitter
from api.auth import Doorkeeper
from api.bell import Bell
from api.call_schemas import CALL_SCHEMAS
from api.closing import heard
from api.door import Door, handle
from api.errors import ApiError
from api.held import HeldBook
from api.housekeeping import kept
from api.lanes import LaneBook
from api.metrics import Meter, Traffic
from api.rendered import Rendered
from api.state import House
from api.upstreams import Upstreams
from api.waiting import Waiting
from promptmill.engine import Database
from promptmill.errors import PromptmillError
from promptmill.hints import Hints, LocalHints
from promptmill.intake.inbox import Inbox
from promptmill.redis_hints import RedisHints
from promptmill.settings import Settings, load


def create_app(
    settings: Settings | None = None,
    *,
    db: Database | None = None,
    hints: Hints | None = None,
    closing: asyncio.Event | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The application; settings come from the environment where none are given. Raises SettingsError.

    `db` and `hints` are those of a worker in the same process (`promptmill serve`); whoever gives them closes them.
    `closing` is set when the server is to stop; without it, signals are listened to. `clock` gives Unix seconds.
    """
    chosen = load(os.environ) if settings is None else settings

    traffic = Traffic()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        """What it yields is the `state` of every request."""
        async with AsyncExitStack() as stack:
            house = await _furnished(stack, chosen, traffic, db, hints, closing, clock)
            yield {"house": house, "settings": chosen, "db": house.db, "doorkeeper": house.doorkeeper}

    app = FastAPI(title="promptmill", lifespan=lifespan)
    for part in (
        health, metrics, jobs, job_control, models, gateway, batches, batch_control, batch_jobs, events, control,
        tenants, schedules, schedule_fires, files, together_files, together_parts, uploads,
    ):  # fmt: skip
        app.router.routes.extend(part.router.routes)  # not included: that costs each request another layer
    for kind in (ApiError, PromptmillError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
    app.add_middleware(Door, max_open_requests=chosen.max_open_requests, observe=traffic.observe)
    openapi.describe(app, CALL_SCHEMAS)
    return app


async def _furnished(
    stack: AsyncExitStack,
    settings: Settings,
    traffic: Traffic,
    db: Database | None,
    hints: Hints | None,
    closing: asyncio.Event | None,
    clock: Callable[[], float],
) -> House:
    if db is None:
        db = Database(settings.database_url)
        stack.push_async_callback(db.aclose)
    if hints is None:
        hints = RedisHints(settings.redis_url) if settings.redis_url else LocalHints()
        stack.push_async_callback(hints.aclose)
    upstreams = Upstreams()
    stack.push_async_callback(upstreams.aclose)
    if closing is None:
        closing = asyncio.Event()
        stack.enter_context(heard(closing))
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    waiting = Waiting(db, hints)
    await stack.enter_async_context(waiting.running())
    bell = Bell(hints, settings.redis_url)
    stack.push_async_callback(bell.aclose)
    inbox = Inbox(db, settings, ring=bell.ring, holder=holder, clock=clock)
    stack.push_async_callback(inbox.aclose)
    lane_book = LaneBook(db)
    stack.push_async_callback(lane_book.aclose)
    doorkeeper = Doorkeeper(db)
    stack.push_async_callback(doorkeeper.aclose)
    admitter = Admitter(db, settings, ring=bell.ring, holder=holder, clock=clock)
    await stack.enter_async_context(admitter.running())
    rendered = Rendered(db)
    stack.push_async_callback(rendered.aclose)
    house = House(
        settings=settings, db=db, hints=hints, inbox=inbox, waiting=waiting, doorkeeper=doorkeeper, bell=bell,
        held=HeldBook(db, holder), lanes=lane_book, admitter=admitter, rendered=rendered, upstreams=upstreams,
        traffic=traffic, meter=Meter(), dry_runs=asyncio.Semaphore(AT_ONCE), closing=closing, holder=holder,
        clock=clock,
    )  # fmt: skip
    await stack.enter_async_context(kept(house))
    return house
