"""Where an export goes: a file that appears only when it is complete, or standard output.

A file is written under a temporary name beside its place and renamed at the end, so that an export that was
interrupted, or ran out of disk, leaves whatever was there before, and never a file that looks whole.
"""

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NoReturn, Protocol, Self

from promptmill.errors import UsageError

STANDARD_OUTPUT: Final = Path("-")

_BUFFER_BYTES: Final = 256 * 1024
#: Of the name, in what is called like the file until the file is complete: the whole must stay under 255 bytes.
_NAME_CHARACTERS: Final = 40


class Target(Protocol):
    """A place for bytes, and a context manager: left without an exception, what was written is there to stay.

    As far as pyarrow is concerned it is a file.
    """

    closed: bool

    def write(self, data: bytes) -> int:
        """Take these bytes. Raises UsageError when they cannot be kept, BrokenPipeError when nobody reads."""

    def tell(self) -> int:
        """Bytes so far."""

    def flush(self) -> None:
        """Do nothing: what matters is the end."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what was written, or after an exception leave things as they were."""


def target(path: Path, *, durable: bool = True) -> Target:
    """The target for `path`; `-` is standard output, and a device or a pipe is written to as it is.

    `durable` waits until the disk has it all. Raises UsageError when the path cannot be written to.
    """
    if path == STANDARD_OUTPUT:
        return _Stream("standard output", sys.stdout.buffer, close=False)
    existing = check_place(path)
    if existing is not None and not stat.S_ISREG(existing.st_mode):
        try:
            return _Stream(str(path), path.open("wb"), close=True)
        except OSError as error:
            _refuse(path, error)
    return _Replaced(path, mode=None if existing is None else stat.S_IMODE(existing.st_mode), durable=durable)


def check_place(path: Path) -> os.stat_result | None:
    """Can this be written to, as far as one can tell without trying? Raises UsageError; returns what is there now."""
    if path == STANDARD_OUTPUT:
        return None
    try:
        existing = path.stat()
    except FileNotFoundError:
        existing = None
    except OSError as error:
        _refuse(path, error)
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise UsageError(f"cannot write {path}: it is a folder")
    if existing is not None and not os.access(path, os.W_OK):
        raise UsageError(f"cannot write {path}: it is write-protected")  # renaming would get round that
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")
    if (existing is None or stat.S_ISREG(existing.st_mode)) and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: the folder {path.parent} is write-protected")
    return existing


def _refuse(where: Path | str, error: OSError) -> NoReturn:
    raise UsageError(f"cannot write {where}: {error.strerror or error}") from error


class _Stream:
    """What cannot be replaced: a pipe, a terminal, a device."""

    def __init__(self, name: str, stream: BinaryIO, *, close: bool) -> None:
        self.closed = False
        self._name = name
        self._stream = stream
        self._close = close
        self._written = 0

    def write(self, data: bytes) -> int:
        try:
            self._stream.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _refuse(self._name, error)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        try:
            if self._close:
                self._stream.close()
            elif kind is None:
                self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as problem:
            _refuse(self._name, problem)


class _Replaced:
    """A regular file, new or in place of an older one."""

    def __init__(self, path: Path, *, mode: int | None, durable: bool) -> None:
        self.closed = False
        self._path = path
        self._durable = durable
        self._written = 0
        # A link stays a link, and what it leads to is replaced.
        self._place = path.resolve() if path.is_symlink() else path
        self._part = self._place.with_name(f".{self._place.name[:_NAME_CHARACTERS]}.{secrets.token_hex(4)}.part")
        try:
            self._file = self._part.open("xb", buffering=_BUFFER_BYTES)
            if mode is not None:
                self._part.chmod(mode)
        except OSError as error:
            _refuse(path, error)

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            _refuse(self._path, error)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        kept = False
        try:
            if kind is None:
                self._keep()
                kept = True
        except OSError as problem:
            _refuse(self._path, problem)
        finally:
            if not kept:
                with suppress(OSError):  # closing writes what is buffered: on a full disk it fails once more
                    self._file.close()
                self._part.unlink(missing_ok=True)

    def _keep(self) -> None:
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._place)
