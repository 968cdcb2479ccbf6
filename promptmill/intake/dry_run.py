"""An input is read and checked as if it were taken in, and nothing of it is kept: how many jobs for which models, how
long their prompts are, what is wrong on which line.

Memory stays flat, and whoever shares the event loop is not kept waiting for more than a few milliseconds.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.errors import InputError, LineError
from promptmill.foresight import Load
from promptmill.intake.checker import Checker
from promptmill.intake.stream import Source
from promptmill.jsonl import DuplicateFinder, Line, detect_format, read_lines
from promptmill.kinds import KINDS
from promptmill.request import Defaults, ParsedLine
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import admissions, files

#: Errors that are kept in full, and custom_ids given twice that are named; the rest is only counted.
ERRORS_KEPT: Final = 1_000
_TURN_SECONDS: Final = 0.003
_LARGE_BYTES: Final = 256 * 1024
_LINES_BETWEEN_WORDS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Assay:
    """What an input has."""

    lines: int
    loads: Mapping[str, Load]  # by model, of the lines that are good
    error_count: int
    errors: tuple[LineError, ...]  # the first ones, by line

    @property
    def jobs(self) -> int:
        """Lines that are good."""
        return sum(load.jobs for load in self.loads.values())


class Looking(Checker):
    """A checker that makes nothing: no lane, and no copy of a file that a line names."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        defaults: Defaults,
        *,
        tenant_id: int,
        folder: Path | None = None,
        endpoint_check: str | None = None,
    ) -> None:
        """As a checker's."""
        super().__init__(
            db, settings, defaults,
            file_id=0, tenant_id=tenant_id, created_at=0.0, folder=folder, endpoint_check=endpoint_check,
        )  # fmt: skip
        self._lanes = 0

    async def _made_lane(self, upstream: UpstreamConfig, model: str) -> int:
        del upstream, model
        self._lanes += 1
        return self._lanes

    async def _keep(self, name: str, content: bytes) -> None:
        del name, content


async def of_stream(
    source: Source,
    checker: Looking,
    *,
    max_line_bytes: int,
    again: Callable[[], Iterator[bytes]] | None = None,
    progress: Callable[[int], None] = lambda _lines: None,
) -> Assay:
    """Of an input of the command line. `again` opens it a second time, for the names of custom_ids given twice, since
    nobody keeps names; None: it is a pipe. `progress` is told the number of lines so far.

    Raises UsageError when it cannot be read, InputError when there is no request in it.
    """
    reader = _Reader(checker)
    for line in read_lines(source.chunks, max_line_bytes):
        if not reader.lines:
            checker.input_format = detect_format(source.name, line.data)
        await reader.take(line)
        if reader.lines % _LINES_BETWEEN_WORDS == 0:
            progress(reader.lines)
    progress(reader.lines)
    if not reader.lines:
        raise InputError(source.name, [LineError(None, "empty_file", "there is no request in it")], 1)
    pairs = await asyncio.to_thread(reader.repeated)  # among millions of ids the search takes a while
    if pairs and again is not None:
        wanted = {number for pair in pairs for number in pair}
        for line in read_lines(again(), max_line_bytes):
            if line.number in wanted:
                reader.name(line)
    for first, later in pairs:
        reader.refuse(first, later)
    return reader.assay()


async def of_file(db: Database, checker: Looking, file_id: int) -> Assay:
    """Of an uploaded file."""
    reader = _Reader(checker)
    async for line in _stored(db, file_id):
        if line.data and not line.data.isspace():
            await reader.take(line)
    pairs = await asyncio.to_thread(reader.repeated)  # among millions of ids the search takes a while
    if pairs:
        numbers = sorted({number for pair in pairs for number in pair})
        reader.names.update(await files.custom_ids_at(db, file_id, numbers))
    for first, later in pairs:
        reader.refuse(first, later)
    return reader.assay()


async def _stored(db: Database, file_id: int) -> AsyncIterator[Line]:
    async for group in admissions.lines(db, file_id):
        for _part, number, encoding, data in group:
            yield Line(number, unpack(encoding, data))


class _Reader:
    """An input on its way past."""

    def __init__(self, checker: Looking) -> None:
        self.lines = 0
        #: Line number → custom_id, of lines whose custom_ids may be the same.
        self.names: dict[int, str] = {}
        self._checker = checker
        self._sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])  # as in Load
        self._repeats: dict[int, ParsedLine] = {}
        self._errors: list[LineError] = []
        self._error_count = 0
        self._duplicates = DuplicateFinder()
        self._turn_began = time.perf_counter()

    async def take(self, line: Line) -> None:
        """The next line."""
        if time.perf_counter() - self._turn_began > _TURN_SECONDS:
            await asyncio.sleep(0)
            self._turn_began = time.perf_counter()
        self.lines += 1
        large = len(line.data) > _LARGE_BYTES
        parsed = await asyncio.to_thread(self._checker.parsed, line) if large else self._checker.parsed(line)
        if isinstance(parsed, LineError):
            self._wrong(parsed)
            return
        lane_id = self._checker.known_lane(parsed) or await self._checker.lane(line, parsed)
        if isinstance(lane_id, LineError):
            self._wrong(lane_id)
            return
        self._duplicates.add(parsed.custom_id or f"line-{line.number}", line.number)
        self._count(parsed, 1)

    def repeated(self) -> list[tuple[int, int]]:
        """(first line, later line) of custom_ids that seem to come twice; all are counted, the first ones listed."""
        candidates = self._duplicates.candidates()
        listed = list(islice(candidates, ERRORS_KEPT))
        self._error_count += sum(1 for _ in candidates)
        return listed

    def name(self, line: Line) -> None:
        """A line that is read for the second time."""
        parsed = self._checker.parsed(line)
        if isinstance(parsed, ParsedLine):
            self.names[line.number] = parsed.custom_id or f"line-{line.number}"
            self._repeats[line.number] = parsed

    def refuse(self, first: int, later: int) -> None:
        """The later line is wrong, unless the two have different names of one digest."""
        mine, theirs = self.names.get(later), self.names.get(first)
        if mine is not None and theirs is not None and mine != theirs:
            return
        named = "custom_id" if mine is None else f"custom_id {mine!r}"
        self._wrong(LineError(later, "duplicate_custom_id", f"{named} was seen before, on line {first}", "custom_id"))
        if later in self._repeats:
            self._count(self._repeats[later], -1)

    def _count(self, parsed: ParsedLine, by: int) -> None:
        sums = self._sums[parsed.model]
        sums[0] += by
        sums[1] += by * parsed.prompt_tokens
        if not KINDS[parsed.kind].answers_in_tokens:
            return  # the answer's tokens are bounded, by 0
        if parsed.max_tokens is None:
            sums[3] += by
        else:
            sums[2] += by * parsed.max_tokens

    def _wrong(self, error: LineError) -> None:
        self._error_count += 1
        if len(self._errors) < ERRORS_KEPT:
            self._errors.append(error)

    def assay(self) -> Assay:
        """What it came to."""
        errors = sorted(self._errors, key=lambda error: error.line or 0)
        return Assay(
            self.lines,
            {model: Load(*sums) for model, sums in self._sums.items() if sums[0]},
            self._error_count,
            tuple(errors),
        )
