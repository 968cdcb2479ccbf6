"""What Celery may ask for: a drain (queue `drain`), and chores (queue `maint`, so that drains cannot hold them up).

All take no arguments and return nothing: what there is to do stands in the database.
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import sqlalchemy as sa
import uvloop

from promptmill import schema
from promptmill.dispatch import DRAIN_TASK, PURGE_TASK, UPKEEP_TASK, Dispatcher
from promptmill.engine import Database
from promptmill.hints import Hints, Listener, LocalHints
from promptmill.job import LaneState
from promptmill.redis_hints import RedisHints
from promptmill.settings import Settings, load
from promptmill.store import lanes, workers
from promptmill.store import upkeep as store_upkeep
from promptmill.store.active import active
from worker.attempt import Desk
from worker.drain import Drain, DrainTerms
from worker.fires import Fires
from worker.garbage import collect_seldom
from worker.limits.chosen import limiter_for
from worker.recorder import is_database_away, words_for
from worker.sockets import allow_sockets
from worker.stop import sigterm_heard_by
from worker.upkeep import Upkeep

log = logging.getLogger("promptmill.worker")

#: A drain without work ends after this long; a hint or a ticket starts the next one.
IDLE_SECONDS: Final = 30.0
#: A drain gives its slot back now and then, so that a long-lived process cannot grow for ever.
MAX_AGE_SECONDS: Final = 3600.0
#: A transaction in which a worker says nothing for so long is ended by PostgreSQL, before its jobs go to others.
TRANSACTION_IDLE_SECONDS: Final = 10.0


def install(app: Any) -> None:
    """Register the tasks, under names of their own, on the app."""

    @app.task(name=DRAIN_TASK)  # type: ignore[untyped-decorator]  # celery ships no types
    def drain() -> None:
        _run(_drain(app.stop_pipe))

    @app.task(name=UPKEEP_TASK)  # type: ignore[untyped-decorator]
    def upkeep() -> None:
        _run(_upkeep())

    @app.task(name=PURGE_TASK)  # type: ignore[untyped-decorator]
    def purge() -> None:
        _run(_purge())


def _run(work: Coroutine[Any, Any, None]) -> None:
    """In an event loop of its own: one per slot, whatever the pool."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(work)
        except (OSError, sa.exc.SQLAlchemyError) as error:
            if not is_database_away(error):
                raise
            log.warning("the database is away (%s); the next ticket tries again", words_for(error))


async def _drain(stop_pipe: Any) -> None:
    settings = load(os.environ)
    allow_sockets(settings)
    collect_seldom()
    clock = time.time
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        if stop_pipe is not None:
            stack.enter_context(stop_pipe.heard_by(loop, stop))
        stack.enter_context(sigterm_heard_by(loop, stop))
        db = await _database(stack, settings)
        hints: Hints = RedisHints(settings.redis_url) if settings.redis_url else LocalHints()
        stack.push_async_callback(hints.aclose)
        desk = Desk(settings, clock=clock, hints=hints)
        stack.push_async_callback(desk.aclose)
        name = f"{socket.gethostname()}:{os.getpid()}:{threading.get_native_id()}"
        terms = DrainTerms(worker_name=name, idle_seconds=IDLE_SECONDS, max_age_seconds=MAX_AGE_SECONDS)
        drain = Drain(db, settings, desk, limiter_for(settings, name, stack), terms, clock=clock, hints=hints)
        await stack.enter_async_context(hints.listening(Listener(work=drain.wake)))
        await drain.run(stop)


async def _database(stack: AsyncExitStack, settings: Settings) -> Database:
    db = Database(settings.database_url, transaction_idle_seconds=TRANSACTION_IDLE_SECONDS)
    stack.push_async_callback(db.aclose)
    await schema.ensure(db)
    return db


async def _upkeep() -> None:
    """Reap, stage, expire, finish cancelled batches; then tickets for the slots that are free, while there is work.
    And what schedules have for us, with tickets for that."""
    settings = load(os.environ)
    owner = f"maint:{socket.gethostname()}:{os.getpid()}"
    async with AsyncExitStack() as stack:
        db = await _database(stack, settings)
        await Upkeep(db, clock=time.time, owner=owner).do_all()
        await _ask_for_drains(db, settings)

        async def ring() -> None:
            await _ask_for_drains(db, settings)

        await Fires(db, settings, owner=owner, ring=ring, clock=time.time).all_due()


async def _ask_for_drains(db: Database, settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        if await _claimable(db):
            dispatcher = Dispatcher(settings.redis_url)
            stack.callback(dispatcher.close)
            wanted = dispatcher.tickets_wanted(await workers.alive(db, now=time.time()))
            if wanted:
                dispatcher.work_arrived(tickets=wanted)


async def _claimable(db: Database) -> bool:
    """Is there a ready job on a lane that is not halted?"""
    wanted = {each.lane_id for each in await active(db, now=time.time())}
    return any(row.state is not LaneState.HALTED for row in await lanes.read(db, wanted))


async def _purge() -> None:
    """Forget workers that ended long ago."""
    settings = load(os.environ)
    async with AsyncExitStack() as stack:
        await store_upkeep.purge(await _database(stack, settings), now=time.time())
