"""Output and error files as bytes. A view of a batch's results is written to the disk once, since its length has to be
told before its first byte; of batches that have ended some are kept for whoever asks again.
"""

import asyncio
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import IO, Final

from promptmill.engine import Database
from promptmill.job import BATCH_FINISHED
from promptmill.output import result_line
from promptmill.store import results, views
from promptmill.store.batches import BatchRow

#: Files of ended batches that are kept, and their bytes together.
KEPT_FILES: Final = 16
KEPT_BYTES: Final = 2 * 1024**3
#: Written and read at once.
_CHUNK_BYTES: Final = 256 * 1024


class RenderedFile:
    """A file without a name: it is gone when nobody reads it any more, whatever happens to the process."""

    def __init__(self, file: IO[bytes], size: int, lines: int) -> None:
        self._file = file
        self._one_at_a_time = threading.Lock()
        self.size = size
        self.lines = lines
        weakref.finalize(self, file.close)

    async def chunks_from(self, start: int) -> AsyncIterator[bytes]:
        """Its bytes from `start` on."""
        while chunk := await asyncio.to_thread(self._read, start):
            yield chunk
            start += len(chunk)

    def _read(self, start: int) -> bytes:
        with self._one_at_a_time:
            self._file.seek(start)
            return self._file.read(_CHUNK_BYTES)


#: (file id, when its batch ended): a batch that was taken up again has another file the next time.
_Key = tuple[int, float]


class Rendered:
    """One per process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kept: OrderedDict[_Key, RenderedFile] = OrderedDict()
        self._rendering: dict[_Key, asyncio.Task[RenderedFile]] = {}

    async def of(self, batch: BatchRow, file_id: int, view: views.View) -> RenderedFile:
        """The view as it is now. Whoever asks for the same at the same time waits for the same."""
        if batch.state not in BATCH_FINISHED or batch.finished_at is None:
            return await self._render(batch, view)
        key = (file_id, batch.finished_at)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        task = self._rendering.get(key)
        if task is None:
            task = asyncio.create_task(self._render_to_keep(key, batch, view), name="promptmill-render")
            self._rendering[key] = task
            task.add_done_callback(lambda _: self._rendering.pop(key, None))
        return await asyncio.shield(task)  # one who goes away does not take the others' file along

    async def aclose(self) -> None:
        """Let go of all files."""
        tasks = list(self._rendering.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._kept.clear()

    async def _render_to_keep(self, key: _Key, batch: BatchRow, view: views.View) -> RenderedFile:
        made = await self._render(batch, view)
        await views.complete(self._db, batch, file_id=key[0], size_bytes=made.size)
        self._kept[key] = made
        while len(self._kept) > KEPT_FILES or sum(each.size for each in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return made

    async def _render(self, batch: BatchRow, view: views.View) -> RenderedFile:
        file: IO[bytes] = await asyncio.to_thread(tempfile.TemporaryFile, prefix="promptmill-")
        try:
            size = lines = held_bytes = 0
            held: list[bytes] = []
            async for result in results.stream(self._db, batch.id, states=views.STATES[view]):
                line = result_line(result, batch.public_id)
                held.append(line)
                held_bytes += len(line)
                lines += 1
                if held_bytes >= _CHUNK_BYTES:
                    await asyncio.to_thread(_write, file, held)
                    size += held_bytes
                    held, held_bytes = [], 0
            await asyncio.to_thread(_write, file, held)
        except BaseException:
            file.close()
            raise
        return RenderedFile(file, size + held_bytes, lines)


def _write(file: IO[bytes], lines: Sequence[bytes]) -> None:
    file.write(b"".join(lines))
    file.flush()
