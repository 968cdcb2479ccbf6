"""The connections to one upstream: opened when there is none to spare, kept for the next call, closed when stale.

Nothing is created before the first call, and everything belongs to the event loop of that call; so a process that
forks before it has nothing to share by mistake.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from typing import cast

from promptmill.outcome import Failure, Reason
from worker.transport.faults import connect_failed, proxy_refused, timed_out
from worker.transport.resolver import Resolver
from worker.transport.route import Proxy, Route
from worker.transport.tunnel import Tunnel, TunnelRefusedError
from worker.transport.wire import Connection

#: Servers close idle connections without a word, uvicorn and Node.js after 5 s; a request sent in that moment is lost.
IDLE_SECONDS = 4.0
#: A host with several addresses may have one that does not answer (IPv6, mostly): try the next after this.
NEXT_ADDRESS_SECONDS = 3.0
#: A call may think for an hour; a peer that is gone is noticed after the first plus PROBES times the second.
KEEPALIVE_SECONDS, PROBE_SECONDS, PROBES = 30, 10, 3


class Pool:
    """Connections to one origin."""

    def __init__(self, route: Route, *, connect_seconds: float, write_seconds: float) -> None:
        self._route = route
        self._connect_seconds = connect_seconds
        self._write_seconds = write_seconds
        self._resolver = Resolver(*(route.proxy or route).address)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def reuse(self) -> Connection | None:
        """An open connection that was used a moment ago, the most recent one first; None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.closed:
                continue
            if connection.idle_since + IDLE_SECONDS > asyncio.get_running_loop().time():
                return connection
            connection.abort()
        return None

    async def open(self, deadline: float) -> Connection | Failure:
        """A new connection, or why there is none."""
        route, proxy = self._route, self._route.proxy
        nearest = f"the proxy {proxy.peer}" if proxy else route.peer
        allowed = min(self._connect_seconds, deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(allowed):
                return await self._open_one()
        except TunnelRefusedError as refused:
            return proxy_refused(proxy.peer if proxy else "", route.peer, str(refused))
        except ssl.SSLError as error:
            return connect_failed(error, route.peer, tls=True)
        except TimeoutError as error:
            if error.errno is None:  # ours, not the system's
                return timed_out(Reason.CONNECT_TIMEOUT, nearest, allowed)
            return connect_failed(error, nearest, tls=False)
        except OSError as error:
            return connect_failed(error, nearest, tls=route.tls is not None)

    def release(self, connection: Connection) -> None:
        """Done with it: kept if it can serve another call, else closed."""
        if not connection.reusable or connection.closed:
            if not connection.closed:
                connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(IDLE_SECONDS, self._sweep)

    async def aclose(self) -> None:
        """Close every connection; calls still on them end as stopped."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        leaving = list(self._open)
        for connection in leaving:
            connection.fail(Failure(Reason.STOPPED, f"the connection to {self._route.peer} was closed on our side"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                for connection in leaving:
                    await connection.wait_closed()

    async def _open_one(self) -> Connection:
        *others, last = await self._resolver.addresses()
        for address in others:
            try:
                async with asyncio.timeout(NEXT_ADDRESS_SECONDS):
                    connection = await self._connect(address)
            except ssl.SSLError:
                raise  # somebody is there, and the others would say the same
            except OSError:
                continue
            self._resolver.prefer(address)
            return connection
        connection = await self._connect(last)
        self._resolver.prefer(last)
        return connection

    async def _connect(self, address: str) -> Connection:
        route, loop = self._route, asyncio.get_running_loop()
        name = route.host if route.tls else None
        if route.proxy is None:
            _, connection = await loop.create_connection(
                Connection, address, route.port, ssl=route.tls, server_hostname=name
            )
        elif route.tls is None:
            _, connection = await loop.create_connection(Connection, address, route.proxy.port)
        else:
            connection = await self._connect_through(route.proxy, address, route.tls)
        self._open.add(connection)
        connection.on_closed(self._open.discard)
        try:
            self._set_options(connection)
        except OSError:  # closed again already
            connection.abort()
            raise
        return connection

    async def _connect_through(self, proxy: Proxy, address: str, tls: ssl.SSLContext) -> Connection:
        loop = asyncio.get_running_loop()
        transport, tunnel = await loop.create_connection(Tunnel, address, proxy.port)
        try:
            await tunnel.open(self._route.peer, proxy.authorization)
            connection = Connection()
            transport.set_protocol(connection)
            encrypted = await loop.start_tls(transport, connection, tls, server_hostname=self._route.host)
            connection.connection_made(cast("asyncio.Transport", encrypted))
        except BaseException:
            transport.abort()
            raise
        return connection

    def _set_options(self, connection: Connection) -> None:
        """Keep-alive probes, and an end to waiting for acknowledgements, where the system has them."""
        sock = cast("socket.socket", connection.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._write_seconds * 1000))

    def _sweep(self) -> None:
        """Idle connections are closed by us before the server does."""
        loop = asyncio.get_running_loop()
        fresh = []
        for connection in self._idle:
            if connection.closed:
                continue
            if connection.idle_since + IDLE_SECONDS > loop.time():
                fresh.append(connection)
            else:
                connection.abort()
        self._idle = fresh
        self._sweeper = loop.call_later(IDLE_SECONDS, self._sweep) if fresh else None
