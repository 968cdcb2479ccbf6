"""`promptmill retry`: finished jobs of a batch are tried again; the ledger keeps the earlier attempts."""

import asyncio
import os
import time
from typing import Annotated

import typer

from cli.database import existing_database
from cli.ringing import ring
from promptmill.errors import NotFound
from promptmill.intake.again import AGAIN, Again, start_again
from promptmill.job import State
from promptmill.settings import Settings, load
from promptmill.store import batches, selection
from promptmill.store.batches import BatchRow


def retry(
    batch: Annotated[str, typer.Argument(help="A batch's id, or how it begins.")],
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed; so it is without any flag.")] = False,
    expired: Annotated[bool, typer.Option("--expired", help="Those that were not sent in time.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Those that were cancelled.")] = False,
    invalid: Annotated[
        bool, typer.Option("--invalid", help="Bad lines that were skipped: they are checked again.")
    ] = False,
    custom_id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this job; may be repeated.", show_default="all")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The endpoint of lines that were bad before.", show_default="as configured")
    ] = None,
    db: Annotated[
        str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")
    ] = None,
) -> None:
    """Try failed jobs again, each with all of its tries. The batch is in progress again."""
    flags = {State.FAILED: failed, State.EXPIRED: expired, State.CANCELLED: cancelled, State.INVALID: invalid}
    states = [state for state, is_set in flags.items() if is_set]
    if not states:
        states = sorted(AGAIN) if custom_id else [State.FAILED]
    settings = load(os.environ, database_url=db, base_url=base_url)
    found, again = asyncio.run(_retry(settings, batch, states, custom_id or [], db))
    ring(db)
    print(f"{found.public_id}: {'1 job starts' if again.retried == 1 else f'{again.retried:,} jobs start'} again")
    counts = {State.EXPIRED: found.expired, State.CANCELLED: found.cancelled, State.INVALID: found.invalid}
    others = [f"--{state} ({count:,})" for state, count in counts.items() if count and state not in states]
    if others and not again.retried:
        print(f"there are others, for {', '.join(others)}")
    if again.left:
        print(
            f"{again.left:,} keep their result: their lines are not accepted (see: promptmill results --state invalid)"
        )
    if again.succeeded:
        print(f"{again.succeeded:,} of those that are named succeeded already, and are not sent again")


async def _retry(
    settings: Settings, reference: str, states: list[State], custom_ids: list[str], option: str | None
) -> tuple[BatchRow, Again]:
    async with existing_database(option) as db:
        found = await batches.find(db, reference)
        positions = None
        if custom_ids:
            named = await selection.positions(db, found, custom_ids)
            if missing := [each for each in custom_ids if each not in named]:
                raise NotFound(f"{found.public_id} has no job with custom_id {missing[0]!r}")
            positions = sorted({position for each in named.values() for position in each})
        again = await start_again(db, settings, found.id, states=states, positions=positions, clock=time.time)
        return found, again
