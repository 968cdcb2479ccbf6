"""One readable stream from many processes: whole lines, each with the name of the process that said it."""

import asyncio
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

#: The stream's own voice.
OWN_NAME: Final = "promptmill"

_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_OWN_COLOUR: Final = 1  # bold
#: A line that gets longer than this is cut, so that a process without line ends cannot fill the memory.
LONGEST_LINE_BYTES: Final = 64 * 1024


class LogStream:
    """Writes to a file descriptor, in a thread: a terminal that is held still must not hold the supervisor."""

    def __init__(self, descriptor: int = 1, *, names: Iterable[str] = (), colour: bool | None = None) -> None:
        self._descriptor = descriptor
        self._colour = os.isatty(descriptor) if colour is None else colour
        self._names = [*names]
        self._width = max((len(name) for name in (OWN_NAME, *self._names)), default=0)
        self._one_at_a_time = asyncio.Lock()
        # A pool of its own: the default one is waited for when the loop closes, and a write may never end.
        self._thread = ThreadPoolExecutor(1, "log")
        self._readable = True

    async def say(self, text: str) -> None:
        """A message of the supervisor's own."""
        await self.write(OWN_NAME, text.encode().split(b"\n"))

    async def write(self, name: str, lines: Iterable[bytes]) -> None:
        """Lines that process `name` said."""
        prefix = self._prefix(name)
        await self.write_plain(b"".join(prefix + line.rstrip(b"\r") + b"\n" for line in lines))

    async def write_plain(self, text: bytes) -> None:
        """Text as it is, in one piece."""
        async with self._one_at_a_time:
            if text and self._readable:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._write_all, text)

    def _prefix(self, name: str) -> bytes:
        text = f"{name:<{self._width}} | "
        if self._colour:
            known = self._names.index(name) % len(_COLOURS) if name in self._names else None
            text = f"\x1b[{_OWN_COLOUR if known is None else _COLOURS[known]}m{text}\x1b[0m"
        return text.encode()

    def _write_all(self, text: bytes) -> None:
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # nobody reads any more (a closed terminal, `| head`); the processes go on
            self._readable = False


class LineSplitter:
    """Lines out of chunks."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def end(self) -> list[bytes]:
        """The last line, if it had no end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []
