"""A stream of lines becomes a file's parts and a batch's jobs, checked before anything is sent.

Memory stays flat: a few thousand lines are held at once, however long the input is. The batch is VALIDATING while its
lines come in, so none of its jobs can be claimed; it opens when every line is good, and is removed when one is not.
It is held as those of the HTTP door are (`admissions`), so that it can be seen when its reader is gone.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import pack
from promptmill.engine import Database
from promptmill.errors import InputError, LineError, NotNow
from promptmill.handling import Handling
from promptmill.intake.checker import Checker
from promptmill.intake.rows import INVALID_COLUMNS, JOB_COLUMNS, Row, invalid_row, job_row
from promptmill.jsonl import DuplicateFinder, Line, detect_format, read_lines
from promptmill.request import Defaults
from promptmill.settings import Settings
from promptmill.store import admissions, batches, files
from promptmill.store.batches import BatchRow, NewBatch
from promptmill.tables import DEFAULT_TENANT, file_parts, jobs, results

#: Lines that are parsed and written together.
LINES_AT_ONCE: Final = 2_000
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
_LINES_BETWEEN_BREATHS: Final = 64
#: Errors that are kept in full; the rest is only counted.
ERRORS_KEPT: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An input: its bytes, in chunks, and what is known about them."""

    name: str
    chunks: Iterable[bytes]
    #: Lines may name files in this folder (audio to transcribe); None: they may not.
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a batch is to be taken in."""

    defaults: Defaults = field(default_factory=Defaults)
    run_key: str | None = None
    skip_bad_lines: bool = False
    priority: int = 0
    deadline: float | None = None
    completion_window: str | None = None  # as it was said
    not_before: float | None = None
    handling: Handling = field(default_factory=Handling)
    tenant_id: int = DEFAULT_TENANT
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of an intake."""

    batch: BatchRow
    jobs: int
    errors: tuple[LineError, ...]  # of skipped lines
    skipped: int


async def take_in(
    db: Database,
    settings: Settings,
    source: Source,
    terms: Terms,
    *,
    clock: Callable[[], float],
    progress: Callable[[int], None] = lambda _lines: None,
) -> Taken:
    """Read, check and store an input as an open batch. `progress` is told the number of lines so far.

    Raises InputError when lines are wrong (all of them are looked at first) and `skip_bad_lines` is not set; then
    nothing of the input is kept. Raises UsageError when the input cannot be read; NotNow when the batch was cancelled
    meanwhile, since nothing was heard from here for a while.
    """
    batches.check_deadline(terms.deadline)
    holder = f"{admissions.COMMAND}{secrets.token_hex(8)}"
    file_id = await files.create(db, filename=source.name, purpose="batch", tenant_id=terms.tenant_id, now=clock())
    new = NewBatch(
        file_id=file_id,
        source=source.name,
        defaults=terms.defaults.to_json(),
        run_key=terms.run_key,
        priority=terms.priority,
        deadline=terms.deadline,
        completion_window=terms.completion_window,
        max_attempts=settings.max_attempts,
        handling=terms.handling,
        tenant_id=terms.tenant_id,
        is_open=terms.is_open,
        validator=holder,
        validator_until=clock() + admissions.HELD_SECONDS,
    )
    batch = await batches.create(db, new, now=clock())
    intake = _Intake(db, settings, source, terms, batch, clock, holder)
    try:
        try:
            await intake.read(progress)
            await intake.refuse_duplicates()
            intake.approve()
        except BaseException:
            await batches.discard(db, batch_id=batch.id)
            raise
        await files.sealed(db, file_id=file_id, size_bytes=intake.size_bytes, parts=intake.lines)
        await batches.open_(
            db, batch_id=batch.id, jobs_by_lane=+intake.jobs_by_lane, invalid=intake.error_count, holder=holder,
            now=clock(),
        )  # fmt: skip
    except admissions.Lost:
        raise NotNow(f"{batch.public_id} was cancelled while its lines were read; nothing of it was sent") from None
    opened = await batches.get(db, batch.id)
    return Taken(opened, intake.jobs_by_lane.total(), tuple(intake.errors), intake.error_count)


class _Intake:
    """One input on its way in."""

    def __init__(
        self, db: Database, settings: Settings, source: Source, terms: Terms, batch: BatchRow,
        clock: Callable[[], float], holder: str,
    ) -> None:  # fmt: skip
        self.errors: list[LineError] = []
        self.error_count = 0
        self.lines = 0
        self.size_bytes = 0
        self.jobs_by_lane: Counter[int] = Counter()
        self._db = db
        self._settings = settings
        self._source = source
        self._terms = terms
        self._batch = batch
        self._clock = clock
        self._holder = holder
        self._duplicates = DuplicateFinder()
        self._checker = Checker(
            db, settings, terms.defaults,
            file_id=batch.file_id, tenant_id=batch.tenant_id, created_at=batch.created_at, folder=source.folder,
        )  # fmt: skip

    async def read(self, progress: Callable[[int], None]) -> None:
        """Every line: parsed, checked and, as long as the input is good, stored.

        While one group of lines is on its way to the database the next one is parsed.
        """
        writing: asyncio.Task[None] | None = None
        try:
            for group in _groups(read_lines(self._source.chunks, self._settings.max_line_bytes)):
                if not self.lines:
                    self._checker.input_format = detect_format(self._source.name, group[0].data)
                rows = await self._rows(group)
                if writing is not None:
                    await writing
                # Once it is clear that the input will be refused, it is only looked at.
                refused = self.error_count and not self._terms.skip_bad_lines
                writing = None if refused else asyncio.create_task(self._write(rows))
                progress(self.lines)
            if writing is not None:
                await writing
        finally:
            if writing is not None:
                await asyncio.gather(writing, return_exceptions=True)

    async def _rows(self, group: Sequence[Line]) -> "_Rows":
        rows = _Rows()
        now, batch, terms = self._clock(), self._batch, self._terms
        for line in group:
            position = self.lines
            self.lines += 1
            self.size_bytes += len(line.data)
            parsed = self._checker.parsed(line)
            if isinstance(parsed, LineError):
                self._skip(rows, line, position, parsed, now)
                continue
            lane_id = self._checker.known_lane(parsed) or await self._checker.lane(line, parsed)
            if isinstance(lane_id, LineError):
                self._skip(rows, line, position, lane_id, now)
                continue
            custom_id = parsed.custom_id or f"line-{line.number}"
            self._duplicates.add(custom_id, line.number)
            self.jobs_by_lane[lane_id] += 1
            rows.parts.append((batch.file_id, position, line.number, custom_id, parsed.form.value, *pack(line.data)))
            rows.jobs.append(
                job_row(
                    parsed, batch_id=batch.id, position=position, lane_id=lane_id, file_id=batch.file_id, part=position,
                    now=now, not_before=terms.not_before, deadline=terms.deadline,
                )
            )  # fmt: skip
            if position % _LINES_BETWEEN_BREATHS == 0:
                await asyncio.sleep(0)  # the other group's bytes leave meanwhile
        return rows

    def _skip(self, rows: "_Rows", line: Line, position: int, error: LineError, now: float) -> None:
        file_id = self._batch.file_id
        self._wrong(error)
        rows.parts.append((file_id, position, line.number, None, None, *pack(line.data)))
        rows.invalid.append(invalid_row(self._batch.id, position, file_id, error, now))

    async def _hold(self, connection: AsyncConnection) -> None:
        """Raises admissions.Lost."""
        await admissions.hold(connection, batch_id=self._batch.id, holder=self._holder, now=self._clock())

    async def _write(self, rows: "_Rows") -> None:
        async with self._db.write() as connection:
            await self._hold(connection)
            await self._db.insert(connection, file_parts, files.PART_COLUMNS, rows.parts)
            await self._db.insert(connection, jobs, JOB_COLUMNS, rows.jobs)
            await self._db.insert(connection, results, INVALID_COLUMNS, rows.invalid)

    def _wrong(self, error: LineError) -> None:
        self.error_count += 1
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(error)

    def approve(self) -> None:
        """May it be opened? Raises InputError."""
        if not self.lines:
            raise InputError(self._source.name, [LineError(None, "empty_file", "there is no request in it")], 1)
        if self.error_count and not self._terms.skip_bad_lines:
            errors = sorted(self.errors, key=lambda error: error.line or 0)
            raise InputError(self._source.name, errors, self.error_count)

    async def refuse_duplicates(self) -> None:
        """A custom_id given twice: the later line is wrong."""
        for group in _batched(self._duplicates.candidates(), LINES_AT_ONCE):
            stored = await self._custom_ids({line for pair in group for line in pair})
            for first, later in group:
                mine, theirs = stored.get(later), stored.get(first)
                if mine is not None and theirs is not None and mine != theirs:
                    continue  # equal digests of different names
                named = f"custom_id {mine!r}" if mine is not None else "custom_id"
                await self._refuse(
                    LineError(later, "duplicate_custom_id", f"{named} was seen before, on line {first}", "custom_id")
                )

    async def _custom_ids(self, lines: set[int]) -> dict[int, str]:
        return await files.custom_ids_at(self._db, self._batch.file_id, sorted(lines))

    async def _refuse(self, error: LineError) -> None:
        """Turn a job that was already stored into an invalid one."""
        if self._terms.skip_bad_lines:
            async with self._db.write() as connection:
                at_line = sa.select(file_parts.c.part).where(
                    file_parts.c.file_id == self._batch.file_id, file_parts.c.line == error.line
                )
                gone = (
                    sa.delete(jobs)
                    .where(jobs.c.batch_id == self._batch.id, jobs.c.position == at_line.scalar_subquery())
                    .returning(jobs.c.position, jobs.c.lane_id)
                )
                row = (await connection.execute(gone)).one_or_none()
                await self._hold(connection)  # after its job, as everywhere: see `records`
                if row is None:
                    return
                self.jobs_by_lane[row.lane_id] -= 1
                bad = [invalid_row(self._batch.id, row.position, self._batch.file_id, error, self._clock())]
                await self._db.insert(connection, results, INVALID_COLUMNS, bad)
        self._wrong(error)


@dataclass(slots=True)
class _Rows:
    """A group of lines as rows of the tables."""

    parts: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    invalid: list[Row] = field(default_factory=list)


def _groups(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines that are written together: so many, or so large together."""
    group: list[Line] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line.data)
        if len(group) >= LINES_AT_ONCE or size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _batched(pairs: Iterable[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    iterator = iter(pairs)
    while group := list(islice(iterator, size)):
        yield group


__all__ = ["Source", "Taken", "Terms", "take_in"]
