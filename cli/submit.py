"""`promptmill submit`, `cancel`, `resume`: give work to workers that run elsewhere, and take it back."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.database import existing_database
from cli.embedded import opened
from promptmill.dispatch import Dispatcher
from promptmill.errors import UsageError
from promptmill.intake import Source, Taken, Terms, take_in
from promptmill.job import BatchState, LaneState
from promptmill.jsonl import open_input
from promptmill.request import Defaults
from promptmill.settings import Settings, load
from promptmill.store import batches, lanes

_Db = Annotated[str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")]


def submit(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="A file of prompts; - is standard input.")],  # noqa: A002 - it is what the user sees
    *,
    db: _Db = None,
    model: Annotated[str | None, typer.Option(help="For lines that name no model.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="For lines that name no url, e.g. /v1/completions.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    within: Annotated[float | None, typer.Option(metavar="SECONDS", help="What is not done by then expires.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries per job; waiting is not a try.")] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Take the good lines of a bad file.")
    ] = False,
) -> None:
    """Enqueue a file of prompts for the workers; prints the batch's id."""
    settings = load(os.environ, database_url=db, max_attempts=max_attempts)
    if within is not None and within <= 0:
        raise UsageError("--within must be above 0 seconds")
    terms = Terms(
        defaults=Defaults(model, endpoint),
        skip_bad_lines=skip_bad_lines,
        priority=priority,
        deadline=None if within is None else time.time() + within,
    )
    taken = asyncio.run(_submit(input, settings, terms))
    for error in taken.errors[:20]:
        print(f"  {error}", file=sys.stderr)
    if taken.skipped:
        print(f"{taken.skipped:,} bad lines skipped; each has a result with its reason", file=sys.stderr)
    if Dispatcher(settings.redis_url).work_arrived() or settings.redis_url is None:
        print(f"{taken.jobs:,} jobs enqueued", file=sys.stderr)
    else:
        print(f"{taken.jobs:,} jobs enqueued; Redis is away, so workers find them by polling", file=sys.stderr)
    print(taken.batch.public_id)


async def _submit(name: str, settings: Settings, terms: Terms) -> Taken:
    async with opened(settings.database_url) as db:
        with open_input(name) as chunks:
            folder = "." if name == "-" else os.path.dirname(name)  # noqa: PTH120 - pure, and so fit for async
            source = Source(name="stdin" if name == "-" else name, chunks=chunks, folder=Path(folder))
            return await take_in(db, settings, source, terms, clock=time.time)


def cancel(
    batch: Annotated[str, typer.Argument(help="A batch's id, or how it begins.")],
    *,
    db: _Db = None,
) -> None:
    """Stop a batch: nothing more is sent, calls under way are kept."""
    asyncio.run(_cancel(batch, db))


async def _cancel(reference: str, option: str | None) -> None:
    async with existing_database(option) as db:
        found = await batches.find(db, reference)
        now = time.time()
        if not await batches.cancel(db, batch_id=found.id, now=now) and found.state is not BatchState.CANCELLING:
            raise UsageError(f"{found.public_id} is {found.state.value}; there is nothing left to cancel")
        await batches.finish_cancelling(db, batch_id=found.id, now=now)
        after = await batches.get(db, found.id)
        under_way = after.total - after.done
        words = f"; {under_way:,} calls under way are kept when they end" if under_way else ""
        print(
            f"{after.public_id} is {after.state.value}: {after.cancelled:,} cancelled, {after.succeeded:,} done{words}"
        )


def resume(
    model: Annotated[str | None, typer.Argument(help="Only lanes of this model.", show_default="all")] = None,
    *,
    db: _Db = None,
) -> None:
    """Let halted lanes try again, after what halted them is mended."""
    asyncio.run(_resume(model, db))


async def _resume(model: str | None, option: str | None) -> None:
    async with existing_database(option) as db:
        halted = [row for row in await lanes.read(db) if row.state is LaneState.HALTED and model in (None, row.model)]
        await lanes.resumed(db, lane_ids=[row.id for row in halted])
        for row in halted:
            print(f"resumed {row.model} at {row.upstream} (it was halted: {row.reason})")
        if not halted:
            print("no lane is halted" if model is None else f"no lane of {model} is halted")
    Dispatcher(load(os.environ, database_url=option).redis_url).work_arrived()
