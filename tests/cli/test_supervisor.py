"""The supervisor with real processes: small shell scripts that do what programs do, and worse."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cli.log_stream import LONGEST_LINE_BYTES, LineSplitter, LogStream
from cli.supervisor import BackOff, CannotStart, Program, Supervisor
from tests.conftest import eventually

REPOSITORY = Path(__file__).parents[2]
#: A program that says where it is up, and ends at a signal with its name on a line of `ends`. No shell: dash loses a
#: signal that comes while it starts a command.
UNTIL_TOLD = """
import os, signal, sys, time
number, name, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def end(*_):
    print(name, "ends", flush=True)
    with open(f"{folder}/ends", "a") as ends:
        ends.write(name + chr(10))
    sys.exit()
signal.signal(number, end)
with open(f"{folder}/{name}", "w") as up:
    up.write(str(os.getpid()))
while True:
    time.sleep(0.05)
"""
AT_ONCE = BackOff(first_seconds=0.01, at_most_seconds=0.01)


class Told:
    """A log stream into a file, and what stands in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def stream(self, *names: str, colour: bool = False) -> LogStream:
        return LogStream(self._file.fileno(), names=names, colour=colour)

    @property
    def text(self) -> str:
        return self._path.read_text()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def told(tmp_path):
    made = Told(tmp_path / "log")
    yield made
    made.close()


def shell(name: str, script: str, **rest) -> Program:
    """A program that is ready when it has said so in a file, where the script does; else at once."""
    return Program(name=name, command=("/bin/sh", "-c", script), **{"ready": at_once, **rest})


def until_told(name: str, folder: Path, number: signal.Signals = signal.SIGTERM) -> Program:
    command = (sys.executable, "-S", "-E", "-c", UNTIL_TOLD, str(int(number)), name, str(folder))
    return Program(name=name, command=command, ready=written(folder / name), stop_signal=number)


async def at_once() -> bool:
    return True


def written(path: Path):
    """A condition: the file is there, and what it says has arrived."""

    async def ready() -> bool:
        return bool(await asyncio.to_thread(words, path))

    return ready


def words(path: Path) -> list[str]:
    """What stands in a file; nothing while it does not exist."""
    return path.read_text().split() if path.exists() else []


def alive(pid: int) -> bool:
    """Not counting what is dead and only not fetched yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TestLogStream:
    async def test_lines_are_whole_and_bear_the_name_of_who_said_them(self, told):
        async with Supervisor(told.stream("a", "bee")) as supervisor:
            await supervisor.start(
                shell("a", "printf on; sleep 0.1; echo e; echo two; exec sleep 60"),
                shell("bee", "printf thr; sleep 0.05; echo ee >&2; printf 'no end'; exec sleep 60"),
            )
            await eventually(lambda: len(told.lines) >= 3)
        assert sorted(told.lines) == [
            "a          | one",
            "a          | two",
            "bee        | no end",
            "bee        | three",
        ]

    async def test_names_have_colours_on_a_terminal(self, told):
        await told.stream("a", "b", colour=True).write("b", [b"text"])
        assert told.text == "\x1b[33mb          | \x1b[0mtext\n"

    async def test_goes_on_when_nobody_reads_any_more(self):
        read_end, write_end = os.pipe()
        log = LogStream(write_end)
        os.close(read_end)
        await log.say("to nobody")
        await log.say("and again")
        os.close(write_end)

    def test_a_line_without_end_does_not_fill_the_memory(self):
        lines = LineSplitter()
        assert lines.feed(b"x" * LONGEST_LINE_BYTES) == []
        assert lines.feed(b"x") == [b"x" * (LONGEST_LINE_BYTES + 1)]
        assert lines.feed(b"a\nb") == [b"a"]
        assert lines.end() == [b"b"]


class TestStart:
    async def test_waits_until_a_program_is_ready(self, told, tmp_path):
        sign = tmp_path / "sign"
        async with Supervisor(told.stream()) as supervisor:
            starting = asyncio.create_task(
                supervisor.start(shell("slow", f"sleep 0.3; echo up > {sign}; exec sleep 60", ready=written(sign)))
            )
            await asyncio.sleep(0.1)
            assert not starting.done()
            await starting
        assert sign.exists()

    async def test_says_why_a_program_cannot_start(self, told):
        async with Supervisor(told.stream()) as supervisor:
            with pytest.raises(CannotStart, match=r"^broken ended with code 7\n    no such colour$"):
                await supervisor.start(shell("broken", "echo no such colour >&2; exit 7", ready=never))

    async def test_says_why_a_program_cannot_be_run(self, told):
        async with Supervisor(told.stream()) as supervisor:
            with pytest.raises(CannotStart, match="missing cannot be run: /no/such/file: No such file or directory"):
                await supervisor.start(Program(name="missing", command=("/no/such/file",)))

    async def test_gives_up_on_a_program_that_does_not_become_ready(self, told):
        async with Supervisor(told.stream()) as supervisor:
            with pytest.raises(CannotStart, match=r"idle was not ready within 0.2 s"):
                await supervisor.start(shell("idle", "exec sleep 60", ready=never, ready_seconds=0.2))

    async def test_a_question_that_fails_is_not_kept_to_itself(self, told, tmp_path):
        async def ready() -> bool:
            raise ZeroDivisionError

        async with Supervisor(told.stream()) as supervisor:
            with pytest.raises(ZeroDivisionError):
                await supervisor.start(shell("asked", f"echo $$ > {tmp_path}/pid; exec sleep 60", ready=ready))

    async def test_one_that_cannot_start_does_not_leave_the_others_behind(self, told, tmp_path):
        async with Supervisor(told.stream()) as supervisor:
            with pytest.raises(CannotStart):
                await supervisor.start(
                    shell("good", f"echo $$ > {tmp_path}/pid; exec sleep 60"),
                    shell("bad", f"while ! test -s {tmp_path}/pid; do sleep 0.05; done; exit 1", ready=never),
                )
        assert not any(alive(int(pid)) for pid in words(tmp_path / "pid"))


async def never() -> bool:
    return False


class TestRestart:
    @pytest.mark.parametrize(
        ("previous", "ran_seconds", "wait"),
        [(None, 0.1, 0.5), (0.5, 0.1, 1.0), (1.0, 59.9, 2.0), (16.0, 1.0, 30.0), (30.0, 1.0, 30.0), (30.0, 60.0, 0.5)],
    )
    def test_the_wait_doubles_until_it_has_been_well_for_a_minute(self, previous, ran_seconds, wait):
        assert BackOff().next(previous, ran_seconds) == wait

    async def test_what_ends_is_started_again(self, told, tmp_path):
        async with Supervisor(told.stream(), back_off=AT_ONCE) as supervisor:
            await supervisor.start(shell("short", f"echo $$ >> {tmp_path}/pids; sleep 0.05; exit 3"))
            await eventually(lambda: len(set(words(tmp_path / "pids"))) >= 3)
        assert "promptmill | short ended with code 3; it is started again in 0.01 s" in told.lines

    async def test_what_is_killed_leaves_nothing_of_its_group_behind(self, told, tmp_path):
        script = f"sleep 60 & echo $! >> {tmp_path}/helpers; echo $$ >> {tmp_path}/leaders; wait"
        async with Supervisor(told.stream(), back_off=AT_ONCE) as supervisor:
            await supervisor.start(shell("leader", script, ready=written(tmp_path / "leaders")))
            (leader,), (helper,) = words(tmp_path / "leaders"), words(tmp_path / "helpers")
            os.kill(int(leader), signal.SIGKILL)
            await eventually(lambda: len(words(tmp_path / "leaders")) >= 2)
            assert not alive(int(helper))
        assert "promptmill | leader was ended by SIGKILL; it is started again in 0.01 s" in told.lines


class TestStop:
    async def test_the_last_started_stops_first(self, told, tmp_path):
        async with Supervisor(told.stream()) as supervisor:
            for name in ("first", "second", "third"):
                await supervisor.start(until_told(name, tmp_path))
        assert words(tmp_path / "ends") == ["third", "second", "first"]

    async def test_with_the_signal_that_the_program_wants(self, told, tmp_path):
        async with Supervisor(told.stream()) as supervisor:
            await supervisor.start(until_told("server", tmp_path, signal.SIGINT))
        assert words(tmp_path / "ends") == ["server"]

    async def test_who_does_not_stop_in_time_is_killed(self, told, tmp_path):
        async with Supervisor(told.stream()) as supervisor:
            await supervisor.start(stubborn(tmp_path, stop_seconds=0.2))
        assert "promptmill | stubborn did not stop in time and is killed" in told.lines

    async def test_haste_cuts_the_wait_short(self, told, tmp_path):
        began = time.monotonic()
        async with Supervisor(told.stream()) as supervisor:
            await supervisor.start(stubborn(tmp_path, stop_seconds=60))
            asyncio.get_running_loop().call_later(0.1, supervisor.hasten)
        assert time.monotonic() - began < 20

    async def test_a_program_that_waits_for_its_next_start_stays_down(self, told):
        began = time.monotonic()
        async with Supervisor(told.stream(), back_off=BackOff(first_seconds=60)) as supervisor:
            await supervisor.start(shell("short", "sleep 0.1; exit 3"))
            await eventually(lambda: "short ended with code 3" in told.text)
        assert time.monotonic() - began < 20


def stubborn(folder: Path, *, stop_seconds: float) -> Program:
    script = f"trap '' TERM; echo up > {folder}/up; while :; do sleep 0.02; done"
    return shell("stubborn", script, ready=written(folder / "up"), stop_seconds=stop_seconds)


SUPERVISES = """
import asyncio, os, sys
from pathlib import Path
from cli.embedded import stopping_on_signals
from cli.lifeline import on_a_lifeline
from cli.log_stream import LogStream
from cli.supervisor import Supervisor
from tests.cli.test_supervisor import until_told

folder = Path(sys.argv[1])

async def supervise(lifeline):
    stop = asyncio.Event()
    async with Supervisor(LogStream()) as supervisor:
        with stopping_on_signals(stop.set, supervisor.hasten), lifeline.watched(stop.set):
            await supervisor.start(until_told("server", folder))
            await supervisor.start(until_told("client", folder))
            (folder / "supervisor").write_text(str(os.getpid()))
            await stop.wait()
    return 5

sys.exit(on_a_lifeline(lambda lifeline: asyncio.run(supervise(lifeline))))
"""


@pytest.fixture
def two_processes(tmp_path):
    """A command with its supervisor, and two programs under it."""
    script = tmp_path / "supervises.py"
    script.write_text(textwrap.dedent(SUPERVISES))
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, script, tmp_path],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=out,
            stderr=out,
        )
    yield process
    process.kill()
    process.wait()


class TestLifeline:
    async def test_signals_reach_the_supervisor_and_its_exit_code_comes_back(self, two_processes, tmp_path):
        await eventually(written(tmp_path / "supervisor"))
        two_processes.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(two_processes.wait, 20) == 5
        assert ends(tmp_path) == ["client", "server"]

    async def test_kill_9_of_the_command_stops_everything_in_order(self, two_processes, tmp_path):
        await eventually(written(tmp_path / "supervisor"))
        two_processes.kill()
        await eventually(lambda: not any(alive(pid) for pid in pids(tmp_path)))
        assert ends(tmp_path) == ["client", "server"]

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
    async def test_kill_9_of_the_supervisor_too_leaves_no_orphans(self, two_processes, tmp_path):
        await eventually(written(tmp_path / "supervisor"))
        os.kill(int((tmp_path / "supervisor").read_text()), signal.SIGKILL)
        two_processes.kill()
        await eventually(lambda: not any(alive(pid) for pid in pids(tmp_path)))
        # They could say their last words, though nobody reads them, and end as they wanted to.
        assert sorted(ends(tmp_path)) == ["client", "server"]


def pids(folder: Path) -> list[int]:
    return [int((folder / name).read_text()) for name in ("supervisor", "server", "client")]


def ends(folder: Path) -> list[str]:
    return words(folder / "ends")
