"""Where the SDKs are pointed: the API as one process over a file, and over a cluster; and the upstreams behind it."""

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cli.simulate.config import SimulateConfig
from cli.simulate.server import SimulateServer
from tests.cli.mill import REPOSITORY, Servers, until

UPSTREAM_KEY = "sk-of-the-upstream"
#: How long the models under `slow/` think, and those under `steady/` speak.
SLOW_SECONDS = 3.5
STEADY_SECONDS = 2.0
#: The patience of a client that is shorter than that.
PATIENCE_SECONDS = 2.0

_FIRST_LINE_SECONDS = 30


@dataclass
class Upstreams:
    """Rehearsal endpoints in a thread; a model's name says which one it is asked of."""

    servers: Servers = field(default_factory=Servers)

    def __post_init__(self) -> None:
        #: All other models.
        self.plain = self._start()
        self.slow = self._start(latency_seconds=(SLOW_SECONDS, SLOW_SECONDS))
        self.steady = self._start(latency_seconds=(STEADY_SECONDS, STEADY_SECONDS))
        #: It serves only `missing/but-one`.
        self.missing = self._start(models=("missing/but-one",))

    def _start(self, **settings: Any) -> SimulateServer:
        return self.servers.start(SimulateServer(SimulateConfig(port=0, api_key=UPSTREAM_KEY, **settings)))

    def environment(self, folder: Path, settings: str = "") -> dict[str, str]:
        """What tells a server of these; `settings` are lines of TOML before them."""
        config = folder / "upstreams.toml"
        config.write_text(
            settings
            + "".join(
                f'[[upstream]]\nname = "{name}"\nurl = "{server.url}"\nkey_env = "PROMPTMILL_UPSTREAM_KEY"\n'
                f'models = ["{name}/*"]\n'
                for name, server in (("slow", self.slow), ("steady", self.steady), ("missing", self.missing))
            )
        )
        return {
            "PROMPTMILL_CONFIG": str(config),
            "PROMPTMILL_UPSTREAM_URL": self.plain.url,
            "PROMPTMILL_UPSTREAM_KEY": UPSTREAM_KEY,
        }

    def calls(self, model: str) -> int:
        """How often a model was called, whoever serves it."""
        return sum(server.stats.by_model[model] for server in (self.plain, self.slow, self.steady, self.missing))


@dataclass(frozen=True)
class Place:
    """A live API."""

    name: str
    #: Without /v1.
    origin: str
    #: Another process of the same API; the same one, where there is only one.
    twin_origin: str
    key: str
    upstreams: Upstreams

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    def model(self, upstream: str, about: str) -> str:
        """A name that only this test of this place uses, so that its calls can be counted."""
        return f"{upstream}/{about}-{self.name}"

    def calls(self, model: str) -> int:
        return self.upstreams.calls(model)


class Served:
    """`promptmill serve` in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**clean_environment(), **environment, "PYTHONPATH": str(REPOSITORY)}
        self._db = folder / "served.sqlite3"
        self.lines: list[str] = []

    def start(self) -> tuple[str, str]:
        """(origin, key)."""
        key = self._cli("keys", "create", "tests", "--db", self._db)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve", "--port", "0", "--db", str(self._db)],
            cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,))
        self._reader.start()
        ready.wait(_FIRST_LINE_SECONDS)
        found = re.search(r"promptmill serves (http://127\.0\.0\.1:\d+)/v1", "".join(self.lines))
        assert found, "".join(self.lines)
        until_ready(found[1])
        return found[1], key

    def _read(self, ready: threading.Event) -> None:
        """A pipe that nobody reads stops the one who writes."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            if "promptmill serves" in line:
                ready.set()
        ready.set()

    def stop(self) -> int:
        """Its exit code, after SIGTERM."""
        self._process.terminate()
        try:
            return self._process.wait(20)
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stderr is not None
            self._process.stderr.close()

    def _cli(self, *words: object) -> str:
        return run_cli(self._folder, self._environment, *words)


def until_ready(origin: str) -> None:
    """The API answers, and reaches its database."""

    def is_ready() -> bool:
        try:
            return httpx.get(f"{origin}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    until(is_ready)


def run_cli(folder: Path, environment: dict[str, str], *words: object) -> str:
    """What `promptmill WORDS` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", *map(str, words)],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def clean_environment() -> dict[str, str]:
    """Nothing of ours, and no keys of the SDKs."""
    ours = ("PROMPTMILL_", "OPENAI_", "TOGETHER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
