"""Runs the work in a second process that notices when the first one dies, however that dies (`kill -9` of the command).

The second one is then still there to stop what it started in the right order; nobody else could.
"""

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cli.exit_codes import EXIT_INTERRUPTED

_HANDED_ON: Final = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


class Lifeline:
    """The second process's end of a pipe whose other end only the first one has."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @contextmanager
    def watched(self, cut: Callable[[], None]) -> Iterator[None]:
        """Call `cut` when the first process is gone, while this is entered."""
        loop = asyncio.get_running_loop()

        def heard() -> None:  # nothing is ever written: readable means closed
            loop.remove_reader(self._descriptor)
            cut()

        loop.add_reader(self._descriptor, heard)
        try:
            yield
        finally:
            loop.remove_reader(self._descriptor)


def on_a_lifeline(work: Callable[[Lifeline], int]) -> int:
    """Run `work` in a process of its own, hand signals on to it, and return its exit code.

    It has a session of its own, so that Ctrl-C reaches it once: from here.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os._exit(_second_process(work, Lifeline(read_end)))
    os.close(read_end)
    for heard, handed_on in _HANDED_ON.items():
        if heard is not signal.SIGHUP or signal.getsignal(heard) is not signal.SIG_IGN:  # nohup
            signal.signal(heard, lambda *_, number=handed_on: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    os.close(write_end)
    return os.waitstatus_to_exitcode(status)


def _second_process(work: Callable[[Lifeline], int], lifeline: Lifeline) -> int:
    try:
        os.setsid()
        code = work(lifeline)
    except KeyboardInterrupt:  # before it could set up anything
        code = EXIT_INTERRUPTED
    except BaseException:  # noqa: BLE001 - nothing may run past here: the rest of the program is the first process's
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
