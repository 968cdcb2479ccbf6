"""`promptmill results`: what came out, in input order or as it finished, while the batch still runs too."""

import asyncio
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cli.database import existing_database
from cli.export import Format, check_places, database_files, export
from cli.media import MediaFolder
from cli.target import STANDARD_OUTPUT
from promptmill.engine import Database
from promptmill.errors import UsageError
from promptmill.job import FINISHED, BatchState, State
from promptmill.store import batches
from promptmill.store.results import Order, stream


def results(
    batch: Annotated[
        str | None, typer.Argument(help="The batch's id, or how it begins.", show_default="the newest")
    ] = None,
    *,
    db: Annotated[str | None, typer.Option(help="Database file or URL.", show_default="promptmill.sqlite3")] = None,
    out: Annotated[Path, typer.Option(help="Write results here.", show_default="stdout")] = STANDARD_OUTPUT,
    errors: Annotated[
        Path | None, typer.Option(help="Write what did not succeed here, and only the rest to --out.")
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="csv-excel is CSV that is safe to open in a spreadsheet.")
    ] = Format.JSONL,
    order: Annotated[Order, typer.Option(help="As in the input, or as they finished.")] = "input",
    state: Annotated[
        list[State] | None, typer.Option(help="Only these; may be repeated.", show_default="all finished ones")
    ] = None,
    save_dir: Annotated[Path | None, typer.Option(help="Write audio and images to files in this folder.")] = None,
) -> None:
    """Print the results of a batch, or write them to files."""
    states = frozenset(state or FINISHED)
    if unfinished := sorted(states - FINISHED):
        raise UsageError(f"a job that is {unfinished[0]} has no result yet; `promptmill status` counts them")
    if format_ is Format.PARQUET and STANDARD_OUTPUT in (out, errors) and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal; give it a file with --out")

    async def write() -> None:
        async with existing_database(db) as database:
            await _write(
                database, batch, out=out, errors=errors, format_=format_, order=order, states=states, save_dir=save_dir
            )

    try:
        asyncio.run(write())
    except BrokenPipeError:
        _stop_writing()


async def _write(
    db: Database,
    reference: str | None,
    *,
    out: Path,
    errors: Path | None,
    format_: Format,
    order: Order,
    states: frozenset[State],
    save_dir: Path | None,
) -> None:
    batch = await batches.find(db, reference)
    check_places(out, errors, spare=database_files(db))
    found = stream(db, batch.id, order=order, states=states)
    with nullcontext() if save_dir is None else MediaFolder(save_dir) as media:
        if media is None:
            counts = await export(found, batch.public_id, out, errors, format_=format_)
        else:
            counts = await export(found, batch.public_id, out, errors, format_=format_, kept=media.keep)
    for path, count in zip((out, errors), counts, strict=True):
        if path is not None and path != STANDARD_OUTPUT:
            _say(f"{_counted(count, 'result')} in {path}")
    if media is not None:
        urls = f", {_counted(media.urls, 'URL')} in its index" if media.urls else ""
        _say(f"{_counted(media.files, 'file')} in {save_dir}{urls}")
    if batch.state is BatchState.VALIDATING:
        _say(f"the input of {batch.public_id} is still being read")
    elif batch.done < batch.total:
        _say(f"{batch.total - batch.done:,} of {batch.total:,} jobs of {batch.public_id} have no result yet")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _say(words: str) -> None:
    """On stderr: stdout is for the results."""
    print(words, file=sys.stderr)


def _stop_writing() -> None:
    """The reader (`| head`) has seen enough: that is no error, and Python is not to complain about it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
