"""Keeps processes running: ordered start, restart with back-off, one log stream, ordered stop, no orphans.

Small on purpose: what a terminal needs for `promptmill up`. A server has systemd or Compose for it.
"""

import asyncio
import ctypes
import os
import pwd
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from cli.log_stream import LineSplitter, LogStream

_ASK_EVERY_SECONDS: Final = 0.1
#: A program that cannot be asked is taken for ready when it has run for so long.
_SETTLED_SECONDS: Final = 2.0
#: How long output may still come when its process has ended.
_LAST_WORDS_SECONDS: Final = 1.0
#: Lines of a process that could not start, for the reason.
_REASON_LINES: Final = 15
_CHUNK_BYTES: Final = 64 * 1024
_PR_SET_PDEATHSIG: Final = 1


class CannotStart(Exception):  # noqa: N818 - says what is the matter, as NotFound does
    """A program ended, or stayed silent, before it was ready for the first time; the message has its last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to keep running."""

    name: str
    command: tuple[str, ...]
    #: None: the supervisor's own.
    environ: Mapping[str, str] | None = None
    #: Run as this user; only root can ask for it.
    user: str | None = None
    #: Asked again and again until it says True.
    ready: Callable[[], Awaitable[bool]] | None = None
    ready_seconds: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    #: How long it may take to stop before it is killed; and the same once somebody is in a hurry.
    stop_seconds: float = 10.0
    hurried_seconds: float = 1.0
    #: What the kernel sends it when the supervisor dies without a word (Linux).
    orphan_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How soon a program that ended is started again."""

    first_seconds: float = 0.5
    at_most_seconds: float = 30.0
    #: After so long in good health the next wait is the first one again.
    healthy_seconds: float = 60.0

    def next(self, previous: float | None, ran_seconds: float) -> float:
        """Seconds to wait now."""
        if previous is None or ran_seconds >= self.healthy_seconds:
            return self.first_seconds
        return min(2 * previous, self.at_most_seconds)


class Supervisor:
    """A context manager: when it is left, everything stops, the last started first."""

    def __init__(self, log: LogStream, *, inherited: Iterable[int] = (), back_off: BackOff | None = None) -> None:
        """`inherited`: descriptors that every process keeps open, e.g. a lock that ends with the last of them."""
        self._log = log
        self._inherited = tuple(inherited)
        self._back_off = back_off or BackOff()
        self._groups: list[list[_Kept]] = []
        self._hurry = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, *programs: Program) -> None:
        """Start programs side by side; returns when all are ready. Raises CannotStart.

        From then on each is started again whenever it ends. Those started by one call also stop side by side, before
        those of earlier calls.
        """
        group = [_Kept(program, self._log, self._back_off, self._inherited, self._hurry) for program in programs]
        self._groups.append(group)
        await asyncio.gather(*(kept.first_ready for kept in group))

    async def stop(self) -> None:
        """Stop everything, the last started first; returns when nothing is left."""
        while self._groups:
            group = self._groups[-1]
            await asyncio.gather(*(kept.stop() for kept in group))
            self._groups.pop()

    def hasten(self) -> None:
        """Wait no longer for those who take their time to stop."""
        self._hurry.set()


class _Kept:
    """One program, through all its processes. A single task owns it, from the first start to the last process's end."""

    def __init__(
        self, program: Program, log: LogStream, back_off: BackOff, inherited: tuple[int, ...], hurry: asyncio.Event
    ) -> None:
        self.program = program
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Looked at by whoever starts it; when the start was interrupted, nobody has to.
        self.first_ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._log = log
        self._back_off = back_off
        self._inherited = inherited
        self._hurry = hurry
        self._stop = asyncio.Event()
        self._last_lines: deque[bytes] = deque(maxlen=_REASON_LINES)
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """End it: politely, then not."""
        self._stop.set()
        await self._task

    async def _keep_running(self) -> None:
        wait: float | None = None
        while not self._stop.is_set():
            began = time.monotonic()
            ended = await self._one_life()
            if self._stop.is_set():
                return
            if not self.first_ready.done():
                self.first_ready.set_exception(CannotStart(self._with_last_lines(ended)))
                return
            if not self.first_ready.cancelled() and self.first_ready.exception() is not None:
                return  # it could not be asked whether it is ready, which whoever starts it has been told
            wait = self._back_off.next(wait, time.monotonic() - began)
            await self._log.say(f"{self.program.name} {ended}; it is started again in {wait:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)

    async def _one_life(self) -> str:
        """From a process's start to its end, and the end of all that it started; returns how it ended, in words."""
        try:
            process, relay = await self._spawn()
        except OSError as error:
            return f"cannot be run: {self.program.command[0]}: {error.strerror or error}"
        ended = asyncio.ensure_future(process.wait())
        overdue = not (self.first_ready.done() or await self._becomes_ready(ended))
        if not overdue:
            await _first_of(ended, self._stop)
        if not ended.done():
            await self._end(process, ended)
        await self._clear_away(process.pid, relay)
        if overdue:
            return f"was not ready within {self.program.ready_seconds:g} s"
        return _how(process.returncode)

    async def _becomes_ready(self, ended: "asyncio.Future[int]") -> bool:
        """False when it has not become ready in time; whether it ended or is to stop meanwhile, the caller sees."""
        asking = asyncio.ensure_future(self._asking())
        await _first_of(ended, self._stop, asking, seconds=self.program.ready_seconds)
        asking.cancel()
        if not asking.done():
            return ended.done() or self._stop.is_set()
        if error := asking.exception():  # a fault of the question; whoever starts the program gets to see it
            self.first_ready.set_exception(error)
            return False
        self.first_ready.set_result(None)
        return True

    async def _asking(self) -> None:
        if self.program.ready is None:
            await asyncio.sleep(_SETTLED_SECONDS)
            return
        while True:
            if await self.program.ready():
                return
            await asyncio.sleep(_ASK_EVERY_SECONDS)

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Future[int]") -> None:
        with suppress(ProcessLookupError):
            process.send_signal(self.program.stop_signal)
        await _first_of(ended, self._hurry, seconds=self.program.stop_seconds)
        if self._hurry.is_set():
            await _first_of(ended, seconds=self.program.hurried_seconds)
        if not ended.done():
            await self._log.say(f"{self.program.name} did not stop in time and is killed")
            _signal_group(process.pid, signal.SIGKILL)
            await ended

    async def _clear_away(self, leader: int, relay: "asyncio.Task[None]") -> None:
        """Leave nothing behind: neither what the process started in its group, nor unread output."""
        give_up = time.monotonic() + self.program.stop_seconds
        left = _signal_group(leader, signal.SIGTERM)
        while left and not self._hurry.is_set() and time.monotonic() < give_up:
            await asyncio.sleep(_ASK_EVERY_SECONDS)
            left = _signal_group(leader, 0)
        _signal_group(leader, signal.SIGKILL)
        await asyncio.wait({relay}, timeout=_LAST_WORDS_SECONDS)
        relay.cancel()

    async def _spawn(self) -> "tuple[asyncio.subprocess.Process, asyncio.Task[None]]":
        program = self.program
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=program.environ,
                start_new_session=True,  # Ctrl-C at the terminal is for the supervisor alone
                # A process holds the read end of its own log too: when the supervisor is gone, what it says while it
                # stops must not kill it (EPIPE).
                pass_fds=(read_end, *self._inherited),
                preexec_fn=_dies_with(os.getpid(), program.orphan_signal),
                **run_as(program.user),
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return process, asyncio.create_task(self._relay(read_end))

    async def _relay(self, read_end: int) -> None:
        """What the process says, line by line, into the log."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
        )
        lines = LineSplitter()
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                await self._said(lines.feed(chunk))
            await self._said(lines.end())
        finally:
            transport.close()

    async def _said(self, lines: list[bytes]) -> None:
        self._last_lines.extend(lines)
        await self._log.write(self.program.name, lines)

    def _with_last_lines(self, what: str) -> str:
        lines = [line.decode(errors="replace").rstrip() for line in self._last_lines]
        return "\n".join([f"{self.program.name} {what}", *(f"    {line}" for line in lines)])


async def _first_of(*them: "asyncio.Event | asyncio.Future[Any]", seconds: float | None = None) -> None:
    """Wait until one of them is done or set, or the time is over."""
    flags = [asyncio.ensure_future(one.wait()) for one in them if isinstance(one, asyncio.Event)]
    futures: list[asyncio.Future[Any]] = [one for one in them if not isinstance(one, asyncio.Event)]
    await asyncio.wait({*futures, *flags}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for flag in flags:
        flag.cancel()


def _signal_group(leader: int, number: int) -> bool:
    """Signal a process and all that it started; False when none of them is left."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):  # macOS: "not permitted", of a group of zombies
        return False
    return True


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def run_as(user: str | None) -> dict[str, Any]:
    """For subprocess: as this user, with no group of ours; None changes nothing."""
    if user is None:
        return {}
    account = pwd.getpwnam(user)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _dies_with(parent: int, number: signal.Signals) -> Callable[[], None] | None:
    """Runs in the new process, after it has changed its user (which would undo it): be told when the parent dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before it could be asked
            os.kill(os.getpid(), number)

    return ask
