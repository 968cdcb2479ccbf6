"""Runs one program to its end and says what it cost: wall time, CPU time, peak memory.

This process stays small and imports nothing that is measured: the system counts a child's peak memory from before it
turned into another program.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: One key for all, so that all send the same headers; the endpoints here look at nothing else.
KEY = "bench-key"
#: Open files that 2,000 connections need, with room to spare.
_FILES = 16_384


class BenchError(Exception):
    """Something could not be measured; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a finished program cost. CPU is user + system, of the process and of the children it waited for."""

    code: int
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    stdout: str
    stderr: str

    def checked(self, what: str) -> "Ran":
        """Itself, if it ended well."""
        if self.code:
            last = "\n".join(self.stderr.strip().splitlines()[-5:]) or "it said nothing"
            raise BenchError(f"{what} ended with {self.code}: {last}")
        return self


def run(line: Sequence[str | Path], *, timeout_seconds: float, more: Mapping[str, str] | None = None) -> Ran:
    """Run it, with `more` in its environment, and wait for it. After `timeout_seconds` it is killed (and its code is
    not 0)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**environment(), **(more or {})}, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        killer = threading.Timer(timeout_seconds, process.kill)
        killer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            killer.cancel()
            if process.returncode is None:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        return Ran(
            process.returncode, wall, usage.ru_utime + usage.ru_stime, peak_mb(usage.ru_maxrss),
            out.read().decode(errors="replace"), err.read().decode(errors="replace"),
        )  # fmt: skip


def peak_mb(maxrss: int) -> float:
    """The system's figure in MB (10^6 bytes); Linux counts in KiB, macOS in bytes."""
    return maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def environment() -> dict[str, str]:
    """The environment of everything that is measured: nobody's settings, keys or proxies."""
    foreign = ("PROMPTMILL_", "TOGETHER_", "OPENAI_")
    proxies = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k.upper() not in proxies}
    return {**kept, "PROMPTMILL_UPSTREAM_KEY": KEY, "OPENAI_API_KEY": KEY}


def raise_file_limit() -> int:
    """Allow this process and its children enough open files; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def end_cleanly() -> None:
    """SIGINT and SIGTERM end the bench once, through every `finally`; a second one does not disturb the cleaning up."""

    def ended(number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, ended)


class Neighbours:
    """What else the machine is doing meanwhile: the CPU time that is neither ours nor our finished children's."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._others = self._now()

    def share(self) -> float | None:
        """Their part of the machine's CPU time so far, 0 to 1; None where the system does not tell (Linux does)."""
        now = self._now()
        if now is None or self._others is None:
            return None
        return max(0.0, now - self._others) / ((time.monotonic() - self._started) * cores())

    @staticmethod
    def _now() -> float | None:
        try:
            with Path("/proc/stat").open(encoding="ascii") as file:
                user, nice, system, _idle, _waiting, irq, soft, steal = map(int, file.readline().split()[1:9])
        except OSError:
            return None
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return busy - sum(each.ru_utime + each.ru_stime for each in used)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    load = os.getloadavg()
    return {
        "system": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        "cores": cores(),
        "python": sys.version.split()[0],
        "load_average": [round(part, 2) for part in load],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
