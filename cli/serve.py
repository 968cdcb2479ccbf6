"""`promptmill serve`: API and worker in one process, with a database file. No server to install.

The same application as `uvicorn api.app:create_app --factory`, and the same drain as everywhere; what they tell each
other stays within the process. On PostgreSQL it is one more worker beside others.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from typing import Annotated, Final

import typer
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.auth import is_loopback
from cli.embedded import opened, sole_worker, stopping_on_signals, take_over, worker_name
from cli.exit_codes import EXIT_INTERRUPTED
from promptmill.engine import Database
from promptmill.errors import UsageError
from promptmill.hints import Hints, Listener, LocalHints
from promptmill.settings import Settings, load
from promptmill.store import held, lanes, tenants
from worker.attempt import Desk
from worker.drain import Drain, DrainTerms
from worker.garbage import collect_seldom
from worker.limits.chosen import limiter_for
from worker.sockets import allow_sockets

#: After a stop, connections that still wait for an answer are closed after this.
_LAST_SECONDS: Final = 8


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    db: Annotated[str | None, typer.Option(help="Database file or URL.", show_default="promptmill.sqlite3")] = None,
    base_url: Annotated[str | None, typer.Option(help="The upstream.", show_default="Together's")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The variable that holds the upstream's key.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Requests per minute, at most.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute, at most.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Calls at once, at most.", show_default="256")] = None,
) -> None:
    """Serve the HTTP API and work its jobs, in one process."""
    import uvloop  # noqa: PLC0415 - not every command needs it

    settings = load(
        os.environ, database_url=db, base_url=base_url, key_env=api_key_env, requests_per_minute=rpm,
        tokens_per_minute=tpm, max_in_flight=max_in_flight,
    )  # fmt: skip
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for talkative in ("alembic", "uvicorn.error", "httpx"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        uvloop.run(_serve(settings, host, port))
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


async def _serve(settings: Settings, host: str, port: int) -> None:
    async with opened(settings.database_url) as db:
        if not is_loopback(host) and not await tenants.any_key(db):
            raise UsageError(
                f"--host {host} can be reached from other machines, and there is no API key yet: make one with "
                f"`promptmill keys create NAME --db {settings.database_url}`, or serve on 127.0.0.1"
            )
        with sole_worker(db) as sole:
            await take_over(db, sole=sole, now=time.time())
            if sole:
                await held.only_holder(db)
            # Starting it is the operator's act, as `promptmill resume` is.
            await lanes.resumed(db, lane_ids=[row.id for row in await lanes.read(db)])
            await _run(settings, db, host, port)


async def _run(settings: Settings, db: Database, host: str, port: int) -> None:
    listening = _listening(host, port)
    async with AsyncExitStack() as stack:
        stack.callback(listening.close)
        hints = _hints(settings)
        stack.push_async_callback(hints.aclose)
        allow_sockets(settings)
        collect_seldom()
        desk = Desk(settings, clock=time.time, hints=hints)
        stack.push_async_callback(desk.aclose)
        limiter = limiter_for(settings, worker_name(), stack)
        drain = Drain(db, settings, desk, limiter, DrainTerms(worker_name=worker_name()), clock=time.time, hints=hints)
        await stack.enter_async_context(hints.listening(Listener(work=drain.wake)))
        stop = asyncio.Event()
        server = _server(create_app(settings, db=db, hints=hints, closing=stop))

        def first() -> None:
            print("stopping: callers get their answers or are told to come again; Ctrl-C again stops at once",
                  file=sys.stderr, flush=True)  # fmt: skip
            stop.set()
            server.should_exit = True

        def second() -> None:
            drain.abandon()
            server.force_exit = True

        with stopping_on_signals(first, second):
            work = asyncio.create_task(drain.run(stop), name="promptmill-drain")
            work.add_done_callback(lambda _: setattr(server, "should_exit", True))
            try:
                await server.serve(sockets=[listening])
            finally:
                stop.set()
                await work


class _Server(uvicorn.Server):
    """Signals are ours to hear: a worker has to be stopped as well."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it can be reached, once it can."""
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"promptmill serves http://{shown}:{port}/v1  (Ctrl-C stops it)", file=sys.stderr, flush=True)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        """Leave them alone."""
        return nullcontext()


def _hints(settings: Settings) -> Hints:
    if settings.redis_url is None:
        return LocalHints()
    from promptmill.redis_hints import RedisHints  # noqa: PLC0415 - only beside other processes

    return RedisHints(settings.redis_url)


def _server(app: FastAPI) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="on", access_log=False, log_config=None, http="httptools", ws="none",
        timeout_graceful_shutdown=_LAST_SECONDS, server_header=False, backlog=4096,
    )  # fmt: skip
    return _Server(config)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}; try another --port") from error
    except OverflowError:
        listening.close()
        raise UsageError(f"--port must lie between 0 and 65535, not {port}") from None
    return listening
