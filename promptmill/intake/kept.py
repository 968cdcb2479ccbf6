"""A file that is uploaded becomes parts as it comes, and its lines are looked at on the way.

So whoever uploads a file learns at once which of its lines are wrong, and not an hour later from a failed batch. What
only a batch can know (its endpoint, its model) is checked when one is made of the file.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec
from msgspec import UNSET

from promptmill.content import pack
from promptmill.engine import Database
from promptmill.errors import InputError, LineError
from promptmill.intake.rows import Row
from promptmill.jsonl import DuplicateFinder, InputFormat, Line, LineCutter
from promptmill.request import Defaults, ParsedLine, parse_line
from promptmill.request.document import BODY_FIELDS, Refused, custom_id_of, read
from promptmill.settings import Settings
from promptmill.store import files, purge
from promptmill.store.files import FileStatus
from promptmill.tables import file_parts

#: Files whose lines are to be requests: OpenAI's word and Together's.
BATCH_PURPOSES: Final = frozenset({"batch", "batch-api"})

#: Parts that are written together.
PARTS_AT_ONCE: Final = 2_000
BYTES_AT_ONCE: Final = 2 * 1024 * 1024
#: Others have their turn after so much: a line costs what so many bytes do, however short it is.
_BYTES_BETWEEN_BREATHS: Final = 256 * 1024
_LINE_BYTES: Final = 4096
#: Problems that are kept in full; the rest is only counted.
PROBLEMS_KEPT: Final = 100
_PROBLEMS_TOLD: Final = 20
_DETAILS_AT_MOST: Final = 4_000
#: While it comes in: nobody's file.
_PURPOSE: Final = "_incoming"
#: No model is no fault yet: the batch may say one.
_DEFAULTS: Final = Defaults(model="any model")


@dataclass(frozen=True, slots=True)
class Kept:
    """What came in."""

    file_id: int
    size_bytes: int
    parts: int
    #: None: it has no lines, but slices.
    lines: int | None
    #: Wrong lines, all of them counted and the first ones told; empty where they were not looked at.
    wrong: int
    problems: tuple[LineError, ...]
    #: In hex, where it was asked for.
    checksum: str | None

    def status(self, purpose: str) -> tuple[FileStatus, str | None]:
        """The file's status and `status_details`, once it is known what it is for."""
        if not self.wrong or purpose not in BATCH_PURPOSES:
            return FileStatus.PROCESSED, None
        told = [f"{self.wrong:,} of {self.lines:,} lines {'is' if self.wrong == 1 else 'are'} wrong"]
        told += [str(problem) for problem in self.problems[:_PROBLEMS_TOLD]]
        if self.wrong > _PROBLEMS_TOLD:
            told.append(f"and {self.wrong - _PROBLEMS_TOLD:,} more")
        # A line may have what the database cannot keep.
        words = "; ".join(told).replace("\0", "").encode(errors="replace").decode()
        return FileStatus.ERROR, words if len(words) <= _DETAILS_AT_MOST else words[: _DETAILS_AT_MOST - 1] + "…"


class KeptFile:
    """One file on its way in: `feed` it, then `finish`; or `discard` it, after which nothing is left."""

    def __init__(
        self, db: Database, settings: Settings, file_id: int, name: str, *, created_at: float, hash_name: str | None
    ) -> None:
        self.file_id = file_id
        #: As its row says.
        self.created_at = created_at
        self.size_bytes = 0
        #: Look at the lines; may be changed until the first chunk.
        self.checked = True
        self._db = db
        self._most = settings.max_upload_line_bytes
        self._name = name
        self._cutter = LineCutter(self._most) if is_lines(name) else None
        self._slice = bytearray()
        self._hash = None if hash_name is None else hashlib.new(hash_name, usedforsecurity=False)
        self._rows: list[Row] = []
        self._rows_bytes = 0
        self._parts = 0
        self._unbreathed = 0
        self._writing: asyncio.Task[None] | None = None
        self._duplicates = DuplicateFinder()
        self._problems: list[LineError] = []
        self._wrong = 0

    @classmethod
    async def begin(
        cls,
        db: Database,
        settings: Settings,
        *,
        filename: str,
        tenant_id: int,
        clock: Callable[[], float],
        purpose: str = _PURPOSE,
        hash_name: str | None = None,
    ) -> "KeptFile":
        """An empty file that nobody sees, PENDING until its row says otherwise. `hash_name` as hashlib knows it.

        A name that ends in .jsonl is of lines, any other of slices.
        """
        now = clock()
        async with db.write() as connection:
            file_id = await files.insert_file(
                connection, filename=filename, purpose=purpose, tenant_id=tenant_id, now=now,
                status=FileStatus.PENDING,
            )  # fmt: skip
        return cls(db, settings, file_id, filename, created_at=now, hash_name=hash_name)

    async def feed(self, chunk: bytes) -> None:
        """More of it. Raises InputError for a line that is longer than this server takes."""
        self.size_bytes += len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)
        if self._cutter is None:
            await self._take_slices(chunk)
            return
        await self._take(self._cutter.feed(chunk))
        if self._cutter.open_bytes > self._most:  # it would not be kept, so its end need not be waited for
            raise self._too_long(self._cutter.ended_lines + 1)

    async def finish(self) -> Kept:
        """All of it was fed. Its row is still PENDING. Raises InputError as `feed` does."""
        if self._cutter is not None:
            await self._take(self._cutter.end())
        elif self._slice:
            await self._take_slice(bytes(self._slice))
        await self._flush()
        if self._writing is not None:
            await self._writing
        await self._find_duplicates()
        self._problems.sort(key=lambda problem: problem.line or 0)
        return Kept(
            self.file_id, self.size_bytes, self._parts, None if self._cutter is None else self._parts, self._wrong,
            tuple(self._problems), None if self._hash is None else self._hash.hexdigest(),
        )  # fmt: skip

    @asynccontextmanager
    async def or_nothing(self) -> AsyncIterator[None]:
        """What breaks in it leaves nothing of the file behind."""
        try:
            yield
        except BaseException:
            await self.discard()
            raise

    async def discard(self) -> None:
        """It is not wanted."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await purge.remove(self._db, self.file_id)

    async def _take(self, lines: Iterator[Line]) -> None:
        for line in lines:
            if line.too_long:
                raise self._too_long(line.number)
            size = len(line.data)
            large = size > _BYTES_BETWEEN_BREATHS
            self._append(await asyncio.to_thread(self._row, line) if large else self._row(line), size)
            self._unbreathed += size + _LINE_BYTES
            if self._unbreathed >= _BYTES_BETWEEN_BREATHS:
                self._unbreathed = 0
                await asyncio.sleep(0)
                if len(self._rows) >= PARTS_AT_ONCE or self._rows_bytes >= BYTES_AT_ONCE:
                    await self._flush()

    def _row(self, line: Line) -> Row:
        custom_id = self._custom_id(line) if self.checked else None
        return (self.file_id, self._parts, line.number, custom_id, None, *pack(line.data))

    def _append(self, row: Row, size: int) -> None:
        self._rows.append(row)
        self._rows_bytes += size
        self._parts += 1

    async def _take_slices(self, chunk: bytes) -> None:
        self._slice += chunk
        while len(self._slice) >= files.SLICE_BYTES:
            await self._take_slice(bytes(self._slice[: files.SLICE_BYTES]))
            del self._slice[: files.SLICE_BYTES]

    async def _take_slice(self, data: bytes) -> None:
        packed = await asyncio.to_thread(pack, data)
        self._append((self.file_id, self._parts, None, None, None, *packed), len(data))
        if self._rows_bytes >= BYTES_AT_ONCE:
            await self._flush()

    async def _flush(self) -> None:
        """Have what is there written, while more of it comes."""
        if self._writing is not None:
            await self._writing
        rows, self._rows, self._rows_bytes = self._rows, [], 0
        self._writing = asyncio.create_task(self._write(rows))

    async def _write(self, rows: list[Row]) -> None:
        async with self._db.write() as connection:
            await self._db.insert(connection, file_parts, files.PART_COLUMNS, rows)

    def _custom_id(self, line: Line) -> str | None:
        """The line's, remembered; what is wrong with the line is noted."""
        parsed = parse_line(line, InputFormat.JSON, _DEFAULTS, max_body_bytes=self._most)
        if isinstance(parsed, ParsedLine):
            custom_id = parsed.custom_id
        else:
            custom_id, only_batch_knows = _look_again(line)
            if not only_batch_knows:
                self._note(parsed)
                return None
        if custom_id is not None:
            self._duplicates.add(custom_id, line.number)
        return custom_id

    def _note(self, problem: LineError) -> None:
        self._wrong += 1
        if len(self._problems) < PROBLEMS_KEPT:
            self._problems.append(problem)

    async def _find_duplicates(self) -> None:
        candidates = self._duplicates.candidates()
        while group := list(islice(candidates, PARTS_AT_ONCE)):
            lines = sorted({line for pair in group for line in pair})
            stored = await files.custom_ids_at(self._db, self.file_id, lines)
            for first, later in group:
                if stored.get(first) == stored.get(later):  # else: equal digests of different names
                    told = f"custom_id {stored.get(later)!r} was seen before, on line {first}"
                    self._note(LineError(later, "duplicate_custom_id", told, "custom_id"))

    def _too_long(self, number: int) -> InputError:
        told = (
            f"the line has more than {self._most:,} bytes, which is the most that this server takes in an uploaded "
            "file (max_upload_line_bytes)"
        )
        return InputError(self._name, [LineError(number, "line_too_large", told)], 1)


def is_lines(filename: str) -> bool:
    """Is a file of this name one of lines?"""
    return filename.lower().endswith(".jsonl")


def _look_again(line: Line) -> tuple[str | None, bool]:
    """(custom_id, True) of a line that was refused for a kind that was only guessed: it has no url, and nothing but
    the batch's endpoint says what it asks for."""
    try:
        document = read(line.data)
        fields = document.fields
        if fields.url is not None or (fields.method or "POST").upper() != "POST":
            return None, False
        body = fields if fields.body is UNSET else BODY_FIELDS.decode(fields.body)
        guessed = body.messages is UNSET  # messages are chat's alone
        return custom_id_of(document), guessed
    except (Refused, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, False
