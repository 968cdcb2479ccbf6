"""The HTTP door on a real socket, in the test's own loop: what a client does to it is what it does to a server."""

import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from promptmill.engine import Database
from promptmill.settings import Settings, load

UPSTREAM = "http://127.0.0.1:1/v1"


#: A quarter of a second goes into reading certificates that nobody here has use for.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def new_client(**options) -> httpx.AsyncClient:
    """A client for plain HTTP."""
    return httpx.AsyncClient(verify=_NO_TLS, **options)


@dataclass
class Serving:
    """A server that listens."""

    url: str
    app: FastAPI
    client: httpx.AsyncClient

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 0


@asynccontextmanager
async def serving(
    db_or_settings: Database | Settings, *, hints=None, clock=time.time, **overrides
) -> AsyncIterator[Serving]:
    """A server over this database (which stays the test's to close), or with these settings; `overrides` are fields
    of Settings, or `base_url` for the upstream."""
    if isinstance(db_or_settings, Database):
        url = db_or_settings.url.render_as_string(hide_password=False)
        settings = load({}, **{"database_url": url, "base_url": UPSTREAM, **overrides})
        app = create_app(settings, db=db_or_settings, hints=hints, clock=clock)
    else:
        app = create_app(db_or_settings, hints=hints, clock=clock)
    # With its protocol named, asyncio sets TCP_NODELAY on what it accepts; else every answer would wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    assert server.started, "the application did not start; its log says why"
    # Plenty of time: a slow machine is not what these tests are about.
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with new_client(base_url=url, timeout=60) as client:
            yield Serving(url, app, client)
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # held requests are not waited for
        with contextlib.suppress(ConnectionError):
            await server.shutdown(sockets=[listener])
