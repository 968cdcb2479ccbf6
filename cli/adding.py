"""Jobs of a file are added to an open batch: all of them, or none."""

import time
from typing import Final

from promptmill.engine import Database
from promptmill.errors import InputError, LineError, NotNow, UsageError
from promptmill.intake.append import Addition, NotOpen, Repeated, append
from promptmill.intake.checker import Checker
from promptmill.jsonl import Line, detect_format, open_input, read_lines
from promptmill.settings import Settings
from promptmill.store import batches
from promptmill.store.batches import BatchRow

#: Added in one transaction, and in memory until then.
MAX_LINES: Final = 100_000
MAX_BYTES: Final = 256 * 1024 * 1024
_ERRORS_KEPT: Final = 1_000


async def add_file(db: Database, settings: Settings, name: str, reference: str) -> tuple[BatchRow, int]:
    """Add the lines of the input `name` to the batch that is meant; returns it, and how many they are.

    Raises InputError for wrong lines, NotNow for a batch that is not open, UsageError, NotFound.
    """
    batch = await batches.find(db, reference)
    additions = await _checked(Checker.of_batch(db, settings, batch), settings, name)
    try:
        await append(db, batch, additions, now=time.time())
    except NotOpen:
        raise NotNow(
            f"{batch.public_id} is {_words(batch)}; jobs are added to one that is open (submit --open)"
        ) from None
    except Repeated as repeated:
        raise InputError(name, [repeated.error], 1) from None
    return batch, len(additions)


async def _checked(checker: Checker, settings: Settings, name: str) -> list[Addition]:
    additions: list[Addition] = []
    errors: list[LineError] = []
    wrong = size = 0
    with open_input(name) as chunks:
        for number, line in enumerate(read_lines(chunks, settings.max_line_bytes)):
            size += len(line.data)
            if number >= MAX_LINES or size > MAX_BYTES:
                raise UsageError(
                    f"{name} has more than {MAX_LINES:,} lines or {MAX_BYTES:,} bytes; add it in several files"
                )
            if not number:
                checker.input_format = detect_format(name, line.data)
            added = await _addition(checker, line)
            if isinstance(added, Addition):
                additions.append(added)
            else:
                wrong += 1
                if len(errors) < _ERRORS_KEPT:
                    errors.append(added)
    if wrong:
        raise InputError(name, errors, wrong)
    if not additions:
        raise InputError(name, [LineError(None, "empty_file", "there is no request in it")], 1)
    return additions


async def _addition(checker: Checker, line: Line) -> Addition | LineError:
    parsed = checker.parsed(line)
    if isinstance(parsed, LineError):
        return parsed
    lane_id = await checker.lane(line, parsed)
    return lane_id if isinstance(lane_id, LineError) else Addition(line.data, parsed, lane_id)


def _words(batch: BatchRow) -> str:
    return batch.state.value if batch.finished_at is not None or batch.is_open else f"{batch.state.value} and sealed"
