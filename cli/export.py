"""Results on their way out of the database: one pass over them, into one file or two, in the format asked for."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from cli.csv_export import CsvWriter
from cli.parquet_export import ParquetWriter
from cli.target import STANDARD_OUTPUT, Target, check_place, target
from promptmill.engine import Database
from promptmill.errors import UsageError
from promptmill.job import State
from promptmill.output import result_line
from promptmill.store.batches import BatchRow
from promptmill.store.results import Result, stream


class Format(StrEnum):
    """How results are written."""

    JSONL = "jsonl"  # OpenAI's output lines: everything, byte for byte
    CSV = "csv"  # the texts, exactly
    CSV_EXCEL = "csv-excel"  # the texts, safe to open in a spreadsheet
    PARQUET = "parquet"  # everything, typed


class Writer(Protocol):
    """One format."""

    def write(self, result: Result) -> None:
        """Add a result."""

    def finish(self) -> None:
        """Write what comes after the last one."""


class JsonLinesWriter:
    """OpenAI's output lines."""

    def __init__(self, place: Target, batch_public_id: str) -> None:
        self._place = place
        self._batch_public_id = batch_public_id

    def write(self, result: Result) -> None:
        """Add a line."""
        self._place.write(result_line(result, self._batch_public_id))

    def finish(self) -> None:
        """Lines need no end."""


def writer(format_: Format, place: Target, batch_public_id: str) -> Writer:
    """A writer of this format. Raises UsageError where it needs something that is not installed."""
    match format_:
        case Format.JSONL:
            return JsonLinesWriter(place, batch_public_id)
        case Format.CSV | Format.CSV_EXCEL:
            return CsvWriter(place, for_excel=format_ is Format.CSV_EXCEL)
        case Format.PARQUET:
            return ParquetWriter(place)


async def export(
    results: AsyncIterator[Result],
    batch_public_id: str,
    out: Path | None,
    errors: Path | None = None,
    *,
    format_: Format = Format.JSONL,
    kept: Callable[[Result], Result] = lambda result: result,
) -> tuple[int, int]:
    """Write the results; returns how many went to `out` and to `errors`.

    With `errors`, what did not succeed goes there and `out` has what did; without it, `out` has everything. `-` is
    standard output. `kept` may replace a result before it is written (its media are in files of their own).

    Both files appear at the end, complete. Raises UsageError when one cannot be written.
    """
    counts = [0, 0]
    with ExitStack() as places:
        pair = [None if path is None else places.enter_context(target(path)) for path in (out, errors)]
        writers = [None if place is None else writer(format_, place, batch_public_id) for place in pair]
        async for result in results:
            which = 0 if errors is None or result.state is State.SUCCEEDED else 1
            chosen = writers[which]
            if chosen is not None:
                chosen.write(kept(result))
                counts[which] += 1
        for each in writers:
            if each is not None:
                each.finish()
    return counts[0], counts[1]


def check_places(out: Path | None, errors: Path | None, *, spare: Iterable[Path] = ()) -> None:
    """Raises UsageError when results cannot be written to these places: before the work, rather than after it.

    `spare` are files that must not be replaced: the database, the input.
    """
    taken = {path.resolve() for path in spare}
    for name, path in (("--out", out), ("--errors", errors)):
        if path is None:
            continue
        check_place(path)
        if path == STANDARD_OUTPUT or path.is_file() or not path.exists():  # but any number may write to /dev/null
            place = path if path == STANDARD_OUTPUT else path.resolve()
            if place in taken:
                raise UsageError(f"{name} {path} is in use for something else; give another name")
            taken.add(place)


async def write_outputs(db: Database, batch: BatchRow, out: Path | None, errors: Path | None) -> tuple[int, int]:
    """What `promptmill run` leaves behind: the batch's results so far, as lines, in input order; see `export`."""
    check_places(out, errors, spare=database_files(db))
    return await export(stream(db, batch.id), batch.public_id, out, errors)


def database_files(db: Database) -> list[Path]:
    """The file that the database is, if it is one."""
    return [Path(db.url.database)] if db.is_sqlite and db.url.database else []
