"""`promptmill status`: the batches, or one of them in detail: what is done, what is slow, what failed and why."""

import asyncio
import json
import os
import sys
import time
from typing import Annotated, Any

import typer

from cli import standstill, status_view
from cli.batch_detail import Detail, batch_facts, detail_facts, read_detail
from cli.database import existing_database
from promptmill.settings import load
from promptmill.store import batches, lanes, pauses, workers
from promptmill.store.batches import BatchRow
from promptmill.store.pauses import What


def status(
    batch: Annotated[str | None, typer.Argument(help="A batch's id, or how it begins: that one in detail.")] = None,
    *,
    db: Annotated[str | None, typer.Option(help="Database file or URL.", show_default="promptmill.sqlite3")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="Every reason for failures, in full, of the newest or the named batch.")
    ] = False,
) -> None:
    """Show the batches, or one of them in detail."""
    now = time.time()
    if batch is None and not failures:
        rows, notes, others = asyncio.run(_listed(db, now))
        if as_json:
            _print_json({"batches": [batch_facts(row) | {"waits_for": notes.get(row.id)} for row in rows]})
        else:
            status_view.print_batches(rows, notes=notes, now=now, file=sys.stdout)
            print("".join(f"{words}\n" for words in others), end="")
        return
    detail = asyncio.run(_read(db, batch, with_examples=failures, now=now))
    if as_json:
        _print_json(detail_facts(detail, now=now))
    else:
        status_view.print_detail(detail, now=now, all_failures=failures, file=sys.stdout)


async def _listed(option: str | None, now: float) -> tuple[list[BatchRow], dict[int, str], list[str]]:
    async with existing_database(option) as db:
        rows = await batches.listed(db)
        paused = await pauses.named(db)
        own = {pause.id for pause, _ in paused if pause.what is What.BATCH}
        notes = {row.id: standstill.note(row, is_paused=row.id in own, now=now) for row in rows}
        others = [f"paused: {standstill.named(pause, name)}" for pause, name in paused if pause.what is not What.BATCH]
        if not_served := (await workers.at_work(db, now=now)).not_served:
            others += [f"{row.model}: {standstill.not_served(row)}" for row in await lanes.read(db, not_served)]
        return rows, {batch_id: note for batch_id, note in notes.items() if note is not None}, others


async def _read(option: str | None, reference: str | None, *, with_examples: bool, now: float) -> Detail:
    settings = load(os.environ, database_url=option)
    async with existing_database(option) as db:
        return await read_detail(db, settings, reference, with_examples=with_examples, now=now)


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, indent=2))
