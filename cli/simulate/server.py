"""Runs the simulator: on a port of its own for people and subprocesses, or inside a test's event loop.

uvicorn parses HTTP and starts the listener; when to stop is decided here, because a rehearsal holds thousands of
unanswered calls and must be gone within a second of Ctrl-C. Whoever still waits then sees the connection end, as
with a provider that goes down.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

import uvicorn

from cli.simulate.app import Simulator, create_app
from cli.simulate.config import SimulateConfig
from cli.simulate.protocol import WireProtocol
from cli.simulate.stats import Stats

_BACKLOG = 4096
#: Longer than clients keep idle connections, so that it is they who close them.
_KEEP_ALIVE_SECONDS = 300
_STOP_SECONDS = 0.5


class SimulateServer:
    """The simulator on a real socket in the running loop: `async with SimulateServer(config) as server: …`"""

    def __init__(self, config: SimulateConfig) -> None:
        self.config = config
        self.app: Simulator = create_app(config)
        self._server: uvicorn.Server | None = None
        self._address = (config.host, config.port)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def origin(self) -> str:
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def url(self) -> str:
        """The base URL for SDKs."""
        return f"{self.origin}/v1"

    @property
    def stats(self) -> Stats:
        """Live, not a copy."""
        return self.app.stats

    def set_faults(self, percentages: Mapping[str, float]) -> None:
        self.app.faults.set_percentages(percentages)

    def set_script(self, steps: Iterable[str]) -> None:
        """What happens to the next calls, one step each; "ok" for nothing."""
        self.app.faults.set_script(steps)

    def reset(self) -> None:
        self.app.control.restart()

    async def start(self) -> None:
        """Listening when it returns. Raises OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        listener = socket.create_server((self.config.host, self.config.port), family=family, backlog=_BACKLOG)
        self._address = (self.config.host, listener.getsockname()[1])
        settings = uvicorn.Config(
            self.app,
            http=WireProtocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        settings.load()
        server = uvicorn.Server(settings)
        server.lifespan = settings.lifespan_class(settings)
        await server.startup(sockets=[listener])
        self._server = server

    async def stop(self) -> None:
        """Every connection is ended, held calls included; nothing is left running when it returns."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        # Their calls notice that the client is gone, and end by themselves.
        tasks = set(server.server_state.tasks)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            for task in stuck:
                task.cancel()
        for listener in server.servers:
            await listener.wait_closed()


def run(config: SimulateConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. Says where it listens in one line, as soon as it does."""
    _raise_open_files_limit()
    with asyncio.Runner(loop_factory=_fast_loop_factory()) as runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(_serve(config))


async def _serve(config: SimulateConfig) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not on Windows, and not off the main thread: there KeyboardInterrupt or the caller ends it.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stopping.set)
    async with SimulateServer(config) as server:
        print(f"listening on {server.url}", flush=True)
        await stopping.wait()


def _fast_loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    """uvloop's loop where there is one; asyncio's own elsewhere."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - does not exist on Windows

    return uvloop.Loop


def _raise_open_files_limit() -> None:
    """Each held call is an open socket, and the usual soft limit of 1,024 is fewer than are held here."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - does not exist on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
