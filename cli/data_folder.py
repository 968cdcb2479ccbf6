"""The folder of a local cluster belongs to one `promptmill up` at a time, and to what it started.

The lock is the operating system's, and every process of the cluster inherits it: it is free when the last of them has
ended, however they ended. So whoever holds it knows that nothing of an earlier run is left.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from cli.local_servers import end_leftover_postgres
from promptmill.errors import StoreError, UsageError

#: What a run leaves behind when it is killed ends by itself within its grace; what does not is told to, or named.
_PATIENCE_SECONDS: Final = 25.0
_ASK_EVERY_SECONDS: Final = 0.1


@contextmanager
def occupied(folder: Path) -> Iterator[int]:
    """Be the only one here; gives the descriptor to hand on to every process. Raises UsageError when somebody is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise UsageError(f"--data {folder} cannot be used: {error.strerror or error}") from error
    with lock:
        if not _taken(lock):
            _wait_for_leftovers(folder, lock)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock.fileno()


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_leftovers(folder: Path, lock: TextIO) -> None:
    """Wait for the processes of a run that was killed; another run that is alive is an error."""
    started = time.monotonic()
    said = told = False
    while not _taken(lock):
        lock.seek(0)
        holder = lock.read().strip()
        if holder.isdigit() and _alive(int(holder)):
            raise UsageError(
                f"another promptmill up (process {holder}) works on {folder}; stop it, or give another --data"
            )
        if not said:
            print(f"an earlier run on {folder} was killed; waiting for what it started to end", file=sys.stderr)
            said = True
        waited = time.monotonic() - started
        if waited > _PATIENCE_SECONDS / 2 and not told:
            end_leftover_postgres(folder)  # it waits for its clients to leave, and one may not
            told = True
        if waited > _PATIENCE_SECONDS:
            raise StoreError(f"processes of an earlier run still use {folder}; see: fuser -v {folder / 'lock'}")
        time.sleep(_ASK_EVERY_SECONDS)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
