"""`promptmill status`: the batches, or one of them in detail: what is done, what is slow, what failed and why."""

import asyncio
import json
import sys
import time
from typing import Annotated, Any

import typer

from cli import status_view
from cli.batch_detail import Detail, batch_facts, detail_facts, read_detail
from cli.database import existing_database
from promptmill.store import batches
from promptmill.store.batches import BatchRow


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
        rows = asyncio.run(_listed(db))
        if as_json:
            _print_json({"batches": [batch_facts(row) for row in rows]})
        else:
            status_view.print_batches(rows, now=now, file=sys.stdout)
        return
    detail = asyncio.run(_read(db, batch, with_examples=failures))
    if as_json:
        _print_json(detail_facts(detail, now=now))
    else:
        status_view.print_detail(detail, now=now, all_failures=failures, file=sys.stdout)


async def _listed(option: str | None) -> list[BatchRow]:
    async with existing_database(option) as db:
        return await batches.listed(db)


async def _read(option: str | None, reference: str | None, *, with_examples: bool) -> Detail:
    async with existing_database(option) as db:
        return await read_detail(db, reference, with_examples=with_examples)


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, indent=2))
