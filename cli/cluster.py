"""The cluster's own processes, as programs for the supervisor: those of docker-compose.yml (a test compares them)."""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from celery import Celery
from kombu.exceptions import OperationalError

from cli.local_servers import LocalServers
from cli.supervisor import Program
from promptmill.dispatch import DRAIN_QUEUE, MAINT_QUEUE
from promptmill.settings import Settings

HOST: Final = "127.0.0.1"

#: A worker that stops waits `grace_seconds` for calls under way, then gives jobs back.
_STOP_MARGIN_SECONDS: Final = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command line asks for."""

    port: int
    workers: int
    concurrency: int
    data: Path
    settings: Settings
    #: For every process of the cluster, the addresses of PostgreSQL and Redis still missing.
    environ: dict[str, str]


def cluster(plan: Plan, servers: LocalServers, environ: Mapping[str, str]) -> dict[str, list[Program]]:
    """The processes beside the two servers, by what they are; in the order of docker-compose.yml."""
    host = socket.gethostname()
    celery = (sys.executable, "-m", "celery", "--quiet", "-A", "worker.app")
    stop_seconds = plan.settings.grace_seconds + _STOP_MARGIN_SECONDS

    def worker(name: str, node: str, queue: str, loops: int) -> Program:
        return Program(
            name=name,
            command=(
                *celery, "worker", "-Q", queue, "-c", str(loops), "--without-mingle", "--without-gossip",
                "-n", f"{node}@{host}",
            ),
            environ=environ,
            ready=_answers_ping(servers.redis_url, f"{node}@{host}"),
            stop_seconds=stop_seconds,
        )  # fmt: skip

    api = Program(
        name="api",
        command=(
            sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--host", HOST,
            "--port", str(plan.port), "--no-access-log", "--timeout-graceful-shutdown", "8",
        ),
        environ=environ,
        ready=_answers_readyz(f"http://{HOST}:{plan.port}/readyz"),
    )  # fmt: skip
    schedule = plan.data.resolve() / "beat-schedule"
    beat = Program(name="beat", command=(*celery, "beat", "-s", str(schedule)), environ=environ)
    numbers = range(1, plan.workers + 1)
    return {
        "workers": [
            *(worker(f"worker-{n}", f"drain-{n}", DRAIN_QUEUE, plan.concurrency) for n in numbers),
            worker("maint", "maint", MAINT_QUEUE, 1),
        ],
        "api": [api],
        "beat": [beat],
    }


def _answers_readyz(url: str) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                return (await client.get(url)).is_success
        except httpx.TransportError:
            return False

    return ask


def _answers_ping(redis_url: str, node: str) -> Callable[[], Awaitable[bool]]:
    """Celery's own question, to one worker."""

    def ask() -> bool:
        with Celery("promptmill-up", broker=redis_url, set_as_current=False) as app:
            try:
                return bool(app.control.ping(destination=[node], timeout=0.5))
            except (OperationalError, OSError):
                return False

    async def ask_in_thread() -> bool:
        return await asyncio.to_thread(ask)

    return ask_in_thread
