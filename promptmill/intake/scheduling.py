"""The lines of a schedule, kept and looked at when it is made: as its fires will submit them, with a fire made up.

So whoever makes it learns at once which lines are wrong, and not at the first fire in the night. What is good then may
not be later (a model may lose its upstream): the batch of such a fire fails, with its reasons.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

import msgspec

from promptmill import schedules as rule
from promptmill import templates
from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.errors import InputError, LineError, UsageError
from promptmill.intake.checker import Checker
from promptmill.intake.kept import KeptFile
from promptmill.jsonl import BLANK, BOM, DuplicateFinder, InputFormat, Line, detect_format, read_lines
from promptmill.kinds import KINDS, PATHS, known_path
from promptmill.request import Defaults, ParsedLine, parse_line
from promptmill.schedules import Schedule, time_zone
from promptmill.settings import Settings
from promptmill.store import admissions, files
from promptmill.store.files import FileStatus
from promptmill.store.schedules import Terms

#: Errors that are told; the rest is counted.
ERRORS_TOLD: Final = 100
#: As an uploaded file of requests: longer only where the schedule still needs it.
_KEPT_SECONDS: Final = 30 * 86_400.0
#: The event loop is everybody's.
_TURN_SECONDS: Final = 0.003


async def keep_lines(
    db: Database,
    settings: Settings,
    chunks: Iterable[bytes],
    *,
    name: str,
    defaults: Defaults,
    tenant_id: int,
    clock: Callable[[], float],
) -> int:
    """Keep an input as a file of the tenant's; returns its id. Lines of text become lines of JSON, so that templates in
    them are filled in as in others. Raises InputError for lines that cannot be kept."""
    filename = name if name.lower().endswith(".jsonl") else f"{name}.jsonl"
    file = await KeptFile.begin(db, settings, filename=filename, tenant_id=tenant_id, clock=clock)
    async with file.or_nothing():
        for data in _json_lines(chunks, name, defaults, settings):
            await file.feed(data)
        kept = await file.finish()
    shown = {
        "purpose": "batch", "status": FileStatus.PROCESSED.value, "bytes": kept.size_bytes, "parts": kept.parts,
        "expires_at": clock() + _KEPT_SECONDS,
    }  # fmt: skip
    await files.settle(db, kept.file_id, shown)
    return kept.file_id


def _json_lines(chunks: Iterable[bytes], name: str, defaults: Defaults, settings: Settings) -> Iterator[bytes]:
    input_format: InputFormat | None = None
    written = 0  # physical lines
    for line in read_lines(chunks, settings.max_line_bytes):
        if line.too_long:
            raise InputError(name, [LineError(line.number, "line_too_large", "the line is too large")], 1)
        if input_format is None:
            input_format = detect_format(name, line.data)
        if input_format is InputFormat.JSON:
            yield line.data
            continue
        yield b"\n" * (line.number - 1 - written)  # lines keep their numbers
        yield _as_json(line, name, defaults, settings)
        written = line.number


def _as_json(line: Line, name: str, defaults: Defaults, settings: Settings) -> bytes:
    parsed = parse_line(line, InputFormat.TEXT, defaults, max_body_bytes=settings.max_line_bytes)
    if isinstance(parsed, LineError):
        raise InputError(name, [parsed], 1)
    path = None if defaults.endpoint is None else known_path(defaults.endpoint)
    kind = KINDS["chat"] if path is None else PATHS[path]
    text = next(each for each in line.data.removeprefix(BOM).split(b"\n") if each.strip(BLANK)).removesuffix(b"\r")
    return msgspec.json.encode({kind.text_field or "prompt": text.decode()}) + b"\n"


async def looked_at(
    db: Database, settings: Settings, *, name: str, when: Schedule, terms: Terms, tenant_id: int, now: float
) -> Terms:
    """The terms, with what was found: whether there are templates in the lines of their file.

    Raises InputError, with the first wrong lines, where a fire could not submit them all.
    """
    look = _Look(db, settings, name, when, terms, tenant_id, now)
    has_templates = await look.through()
    await look.find_duplicates()
    if look.wrong:
        raise InputError(terms.source, sorted(look.errors, key=lambda error: error.line or 0), look.wrong)
    return replace(terms, has_templates=has_templates)


class _Look:
    """One file."""

    def __init__(
        self, db: Database, settings: Settings, name: str, when: Schedule, terms: Terms, tenant_id: int, now: float
    ) -> None:
        self.errors: list[LineError] = []
        self.wrong = 0
        self._db = db
        self._terms = terms
        at = rule.next_fire(when, after=now - when.grace_seconds)
        self._fire = templates.Fire(
            schedule=name, at=now if at is None else at, zone=time_zone(when.zone), number=1, previous_at=None
        )
        any_path = settings.mixed_batches or terms.dialect == "together"
        self._checker = Checker(
            db, settings, Defaults.from_json(terms.defaults), file_id=terms.file_id, tenant_id=tenant_id,
            created_at=now, endpoint_check=None if any_path else terms.endpoint,
        )  # fmt: skip
        self._duplicates = DuplicateFinder()

    async def through(self) -> bool:
        """Every line; are there templates?"""
        has_templates, lines = False, 0
        turn_began = time.perf_counter()
        async for group in admissions.lines(self._db, self._terms.file_id):
            for _, number, encoding, stored in group:
                if time.perf_counter() - turn_began > _TURN_SECONDS:
                    await asyncio.sleep(0)
                    turn_began = time.perf_counter()
                data = unpack(encoding, stored)
                if not data or data.isspace():
                    continue
                lines += 1
                made = templates.render(data, self._fire)
                has_templates |= made != data
                if (problem := await self._problem(number, data, made)) is not None:
                    self._note(problem)
        if not lines:
            self._note(LineError(None, "empty_file", "there is no request in the file"))
        return has_templates

    async def _problem(self, number: int, data: bytes, made: bytes) -> LineError | None:
        try:
            templates.check(data)
        except UsageError as error:
            return LineError(number, "unknown_template_name", str(error))
        line = Line(number, made)
        parsed = self._checker.parsed(line)
        if isinstance(parsed, LineError):
            return parsed
        lane_id = self._checker.known_lane(parsed) or await self._checker.lane(line, parsed)
        if isinstance(lane_id, LineError):
            return lane_id
        self._duplicates.add(_named(parsed, number), number)
        return None

    async def find_duplicates(self) -> None:
        """A custom_id given twice, filled in: the later line is wrong."""
        for first, later in await asyncio.to_thread(lambda: list(self._duplicates.candidates())):
            if len(self.errors) >= ERRORS_TOLD:
                self.wrong += 1
                continue
            mine, theirs = [await self._custom_id(number) for number in (later, first)]
            if mine == theirs:  # else equal digests of different names
                words = f"custom_id {mine!r} was seen before, on line {first}"
                self._note(LineError(later, "duplicate_custom_id", words, "custom_id"))

    async def _custom_id(self, number: int) -> str:
        line = await files.line_at(self._db, self._terms.file_id, number)
        parsed = self._checker.parsed(Line(number, templates.render(line, self._fire)))
        return _named(parsed, number) if isinstance(parsed, ParsedLine) else f"line-{number}"

    def _note(self, error: LineError) -> None:
        self.wrong += 1
        if len(self.errors) < ERRORS_TOLD:
            self.errors.append(error)


def _named(parsed: ParsedLine, number: int) -> str:
    return parsed.custom_id or f"line-{number}"
