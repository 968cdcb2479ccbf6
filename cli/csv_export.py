"""Results as a table for people and their tools: the answer's text in a cell, where JSON Lines has the whole answer.

Plain CSV (RFC 4180, UTF-8) has every text exactly as it is. A spreadsheet takes a cell that begins with `=`, `+`, `-`
or `@` for a formula and runs it, whoever wrote it, a model that read a hostile page included; so there is a second
flavour for spreadsheets, in which such a cell begins with an apostrophe.
"""

import csv
import re
from datetime import UTC, datetime
from typing import Final

from cli.target import Target
from promptmill.output import name_of
from promptmill.store.results import Result
from promptmill.words import said

COLUMNS: Final = (
    "custom_id", "state", "status_code", "text", "reasoning", "error_code", "error_message", "model", "prompt_tokens",
    "completion_tokens", "attempts", "finished_at",
)  # fmt: skip

_BOM: Final = b"\xef\xbb\xbf"
#: What makes a formula, in narrow and in wide characters; but a signed number is just a number.
_FORMULA = re.compile(r"(?![+-]?\d+(?:[.,]\d+)?\Z)[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


class CsvWriter:
    """Rows of COLUMNS. `for_excel` guards against formulas, and tells Excel by a byte order mark that this is UTF-8."""

    def __init__(self, target: Target, *, for_excel: bool = False) -> None:
        self._for_excel = for_excel
        if for_excel:
            target.write(_BOM)
        # CRLF, as RFC 4180 has it: only then does the csv module quote a lone CR in a text too.
        self._rows = csv.writer(_Utf8(target), lineterminator="\r\n")
        self._rows.writerow(COLUMNS)

    def write(self, result: Result) -> None:
        """Add a row."""
        words = said(result)
        cells = (
            name_of(result),
            result.state.value,
            result.status_code,
            words.text,
            words.reasoning,
            result.error_code,
            result.error_message,
            result.model,
            result.usage.prompt_tokens,
            result.usage.completion_tokens,
            result.attempts,
            datetime.fromtimestamp(result.finished_at, UTC).isoformat(timespec="milliseconds"),
        )
        self._rows.writerow([guarded(cell) for cell in cells] if self._for_excel else cells)

    def finish(self) -> None:
        """A table has no end mark."""


def guarded(cell: str | int | None) -> str | int | None:
    """The cell such that no spreadsheet runs it.

    >>> guarded("=1+1"), guarded("- a list"), guarded("-1.5"), guarded("a=b")
    ("'=1+1", "'- a list", '-1.5', 'a=b')
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


class _Utf8:
    """What the csv module writes to."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def write(self, row: str) -> int:
        return self._target.write(row.encode())
