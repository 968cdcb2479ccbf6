"""A batch of an uploaded file: its lines are checked and become jobs. The lines themselves stay where they are.

The batch is VALIDATING meanwhile, so none of its jobs can be claimed; it opens when every line is good, and fails,
with what is wrong on which line, when one is not. Memory stays flat, and whoever shares the event loop is not kept
waiting for more than a few milliseconds.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.errors import LineError
from promptmill.intake.checker import Checker
from promptmill.intake.rows import JOB_COLUMNS, Row, job_row
from promptmill.job import BatchState
from promptmill.jsonl import DuplicateFinder, Line
from promptmill.settings import Settings
from promptmill.store import admissions, batches, files
from promptmill.store.batches import BatchRow
from promptmill.tables import jobs

#: Errors that are told; the rest is counted.
ERRORS_TOLD: Final = 100
_ERRORS_KEPT: Final = 2 * ERRORS_TOLD
#: While nothing is written it is said so often that the batch is still held.
_HOLD_SECONDS: Final = 5.0
#: The event loop is everybody's.
_TURN_SECONDS: Final = 0.003
_LARGE_BYTES: Final = 256 * 1024
_CANDIDATES_AT_ONCE: Final = 1_000


async def read_in(db: Database, settings: Settings, batch_id: int, *, holder: str, clock: Callable[[], float]) -> bool:
    """Take the batch, where nobody else has it, and admit it. True: its jobs may be claimed now."""
    while await admissions.take(db, batch_id=batch_id, holder=holder, now=clock()):
        # Where it was lost in between it is tried again: it may be ours to cancel.
        with suppress(admissions.Lost):
            return await admit(db, settings, batch_id, holder=holder, clock=clock)
    return False


async def admit(db: Database, settings: Settings, batch_id: int, *, holder: str, clock: Callable[[], float]) -> bool:
    """Check the lines of a batch that `holder` has taken. True: its jobs may be claimed now.

    Raises admissions.Lost when somebody else has it meanwhile.
    """
    held = _Held(db, batch_id, holder, clock)
    batch = await batches.get(db, batch_id)
    await held.take_back()  # what one who died left behind
    if batch.cancelling_at is not None:
        await held.end(BatchState.CANCELLED)
        return False
    admission = _Admission(db, settings, batch, held, clock)
    await admission.read()
    await admission.find_duplicates()
    if admission.error_count:
        await held.take_back()
        await held.end(BatchState.FAILED, admission.errors_told())
        return False
    async with db.write() as connection:
        await held.on(connection)
        await batches.open_batch(
            connection, batch_id=batch_id, jobs_by_lane=admission.jobs_by_lane, invalid=0, now=clock()
        )
    return True


class _Held:
    """A batch in this process's hands."""

    def __init__(self, db: Database, batch_id: int, holder: str, clock: Callable[[], float]) -> None:
        self._db = db
        self._batch_id = batch_id
        self._holder = holder
        self._clock = clock
        self._said_at = time.monotonic()

    async def on(self, connection: AsyncConnection) -> None:
        """Go on holding it, and let nobody take it before this transaction has ended. Raises Lost."""
        await admissions.hold(connection, batch_id=self._batch_id, holder=self._holder, now=self._clock())
        self._said_at = time.monotonic()

    async def still(self) -> None:
        """Go on holding it, where that was not said for a while. Raises Lost."""
        if time.monotonic() - self._said_at >= _HOLD_SECONDS:
            async with self._db.write() as connection:
                await self.on(connection)

    async def take_back(self) -> None:
        """Remove all of its jobs. Raises Lost."""
        while await admissions.take_back(self._db, batch_id=self._batch_id, holder=self._holder, now=self._clock()):
            pass

    async def end(self, state: BatchState, errors: Sequence[LineError] = ()) -> None:
        """It has no jobs any more. Raises Lost."""
        told = msgspec.json.encode(errors).decode() if errors else None
        await admissions.end(
            self._db, batch_id=self._batch_id, holder=self._holder, state=state, errors=told, now=self._clock()
        )


class _Admission:
    """The lines of one batch."""

    def __init__(
        self, db: Database, settings: Settings, batch: BatchRow, held: _Held, clock: Callable[[], float]
    ) -> None:
        self.jobs_by_lane: Counter[int] = Counter()
        self.error_count = 0
        self._errors: list[LineError] = []
        self._db = db
        self._batch = batch
        self._held = held
        self._clock = clock
        self._lines = 0
        self._duplicates = DuplicateFinder()
        self._turn_began = time.perf_counter()
        self._checker = Checker.of_batch(db, settings, batch)

    async def read(self) -> None:
        """Every line: checked and, as long as the file is good, made a job. While one group is written, the next one
        is checked."""
        writing: asyncio.Task[None] | None = None
        try:
            async for group in admissions.lines(self._db, self._batch.file_id):
                rows = await self._rows(group)
                if writing is not None:
                    await writing
                    writing = None
                if self.error_count:
                    await self._held.still()  # it will be refused: the rest is only looked at
                else:
                    writing = asyncio.create_task(self._write(rows))
            if writing is not None:
                await writing
        finally:
            if writing is not None:
                await asyncio.gather(writing, return_exceptions=True)
        if not self._lines:
            self._wrong(LineError(None, "empty_file", "there is no request in the file"))

    async def _rows(self, group: Sequence[tuple[int, int, int, bytes]]) -> list[Row]:
        rows: list[Row] = []
        now, batch = self._clock(), self._batch
        for part, number, encoding, data in group:
            if time.perf_counter() - self._turn_began > _TURN_SECONDS:
                await asyncio.sleep(0)
                self._turn_began = time.perf_counter()
            line = Line(number, unpack(encoding, data))
            if not line.data or line.data.isspace():
                continue
            self._lines += 1
            large = len(line.data) > _LARGE_BYTES
            parsed = await asyncio.to_thread(self._checker.parsed, line) if large else self._checker.parsed(line)
            if isinstance(parsed, LineError):
                self._wrong(parsed)
                continue
            lane_id = self._checker.known_lane(parsed) or await self._checker.lane(line, parsed)
            if isinstance(lane_id, LineError):
                self._wrong(lane_id)
                continue
            self._duplicates.add(parsed.custom_id or f"line-{number}", number)
            self.jobs_by_lane[lane_id] += 1
            rows.append(
                job_row(
                    parsed, batch_id=batch.id, position=part, lane_id=lane_id, file_id=batch.file_id, part=part,
                    now=now, not_before=None, deadline=batch.deadline,
                )
            )  # fmt: skip
        return rows

    async def _write(self, rows: Sequence[Row]) -> None:
        async with self._db.write() as connection:
            await self._held.on(connection)
            await self._db.insert(connection, jobs, JOB_COLUMNS, rows)

    async def find_duplicates(self) -> None:
        """A custom_id given twice: the later line is wrong."""
        candidates = self._duplicates.candidates()
        # In a thread: among millions of ids the search takes a while.
        while group := await asyncio.to_thread(lambda: list(islice(candidates, _CANDIDATES_AT_ONCE))):
            if len(self._errors) >= _ERRORS_KEPT:
                self.error_count += len(group)  # they are not looked up to be only counted
                continue
            numbers = sorted({number for pair in group for number in pair})
            stored = await files.custom_ids_at(self._db, self._batch.file_id, numbers)
            for first, later in group:
                mine, theirs = (stored.get(number) or f"line-{number}" for number in (later, first))
                if mine == theirs:  # else equal digests of different names
                    words = f"custom_id {mine!r} was seen before, on line {first}"
                    self._wrong(LineError(later, "duplicate_custom_id", words, "custom_id"))
            await self._held.still()

    def _wrong(self, error: LineError) -> None:
        self.error_count += 1
        if len(self._errors) < _ERRORS_KEPT:
            self._errors.append(error)

    def errors_told(self) -> list[LineError]:
        """The first ones, and how many there are beside them."""
        told = sorted(self._errors, key=lambda error: error.line or 0)[:ERRORS_TOLD]
        more = self.error_count - len(told)
        if more:
            told.append(LineError(None, "more_errors", f"{more:,} more lines are wrong"))
        return told
