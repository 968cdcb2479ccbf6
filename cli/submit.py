"""`promptmill submit` and `seal`: give work to workers that run elsewhere."""

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli import handling_options as options
from cli.adding import add_file
from cli.database import existing_database
from cli.dry_run import dry_run_of, show
from cli.embedded import opened
from cli.foresight_view import sentence
from cli.ringing import ring
from promptmill import outlook
from promptmill.errors import NotNow, UsageError
from promptmill.handling import priority_number
from promptmill.intake import Source, Taken, Terms, take_in
from promptmill.jsonl import open_input
from promptmill.outlook import Outlook
from promptmill.request import Defaults
from promptmill.settings import Settings, load
from promptmill.store import batches, tenants
from promptmill.store.batches import BatchRow
from promptmill.tables import DEFAULT_TENANT

_Db = Annotated[str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")]


def submit(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="A file of prompts; - is standard input.")],  # noqa: A002 - it is what the user sees
    *,
    db: _Db = None,
    model: Annotated[str | None, typer.Option(help="For lines that name no model.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="For lines that name no url, e.g. /v1/completions.")] = None,
    priority: options.Priority = "normal",
    window: options.Window = None,
    within: Annotated[float | None, typer.Option(metavar="SECONDS", help="The same as --window, in seconds.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries per job; waiting is not a try.")] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Take the good lines of a bad file.")
    ] = False,
    tenant: Annotated[
        str | None, typer.Option(help="Whose batch it is; one of a new name is made.", show_default="default")
    ] = None,
    weight: options.Weight = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Its calls at once, at most.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Its requests per minute, at most.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Its tokens per minute, at most.")] = None,
    budget_tokens: options.BudgetTokens = None,
    budget_cost: options.BudgetCost = None,
    canary: options.Canary = None,
    canary_percent: options.CanaryPercent = None,
    canary_ask: options.CanaryAsk = False,
    not_before: options.NotBefore = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Jobs can be added (--append) until it is sealed: promptmill seal.")
    ] = False,
    append: Annotated[
        str | None, typer.Option(metavar="BATCH", help="Add the file's jobs to this open batch; its terms hold.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check the input, and say what it will take in tokens, money and time."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")] = False,
) -> None:
    """Enqueue a file of prompts for the workers; prints the batch's id."""
    settings = load(os.environ, database_url=db, max_attempts=max_attempts)
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run; what submit prints is the batch's id")
    if append is not None:
        if dry_run:
            raise UsageError("--dry-run is of a batch of its own, not of jobs that are added: leave --append out")
        others = (weight, max_in_flight, rpm, tpm, budget_tokens, budget_cost, canary, canary_percent, not_before,
                  window, within, tenant, max_attempts)  # fmt: skip
        if any(each is not None for each in others) or priority != "normal" or canary_ask or is_open:
            raise UsageError("--append adds to a batch that has its terms; change those with: promptmill change")
        if skip_bad_lines:
            raise UsageError("--append adds all lines or none; leave --skip-bad-lines out, and mend the lines")
        batch, count = asyncio.run(_add(input, settings, append, db))
        _told(count, db, settings, batch)
        return
    handled = options.handling_of(
        weight=weight, max_in_flight=max_in_flight, rpm=rpm, tpm=tpm, budget_tokens=budget_tokens,
        budget_cost=budget_cost, canary=canary, canary_percent=canary_percent, canary_ask=canary_ask,
        not_before=not_before,
    )  # fmt: skip
    terms = Terms(
        defaults=Defaults(model, endpoint),
        skip_bad_lines=skip_bad_lines,
        priority=priority_number(priority),
        deadline=options.deadline_of(window, within, handled, now=time.time()),
        completion_window=window,
        handling=handled,
        is_open=is_open,
    )
    if dry_run:
        show(asyncio.run(dry_run_of(input, settings, terms, tenant=tenant)), as_json=as_json)
        return
    taken, expected = asyncio.run(_submit(input, settings, terms, tenant))
    for error in taken.errors[:20]:
        print(f"  {error}", file=sys.stderr)
    if taken.skipped:
        print(f"{taken.skipped:,} bad lines skipped; each has a result with its reason", file=sys.stderr)
    _told(taken.jobs, db, settings, taken.batch, expected)


def _told(jobs: int, db: str | None, settings: Settings, batch: BatchRow, expected: Outlook | None = None) -> None:
    # Who works them needs the same upstreams: jobs are bound to those of whoever submits.
    where = ", ".join(sorted(upstream.url for upstream in settings.upstreams))
    told = f"{jobs:,} jobs enqueued for {where}"
    if ring(db) or settings.redis_url is None:
        print(told, file=sys.stderr)
    else:
        print(f"{told}; Redis is away, so workers find them by polling", file=sys.stderr)
    if expected is not None:
        print(sentence(expected), file=sys.stderr)
    print(batch.public_id)


async def _submit(name: str, settings: Settings, terms: Terms, tenant: str | None) -> tuple[Taken, Outlook | None]:
    async with opened(settings.database_url) as db:
        owner = DEFAULT_TENANT if tenant is None else await tenants.ensure(db, tenant, now=time.time())
        with open_input(name) as chunks:
            folder = "." if name == "-" else os.path.dirname(name)  # noqa: PTH120 - pure, and so fit for async
            source = Source(name="stdin" if name == "-" else name, chunks=chunks, folder=Path(folder))
            taken = await take_in(db, settings, source, replace(terms, tenant_id=owner), clock=time.time)
        expected = await outlook.of_batches(db, settings, [taken.batch], now=time.time())
        return taken, expected.get(taken.batch.id)


async def _add(name: str, settings: Settings, reference: str, option: str | None) -> tuple[BatchRow, int]:
    async with existing_database(option) as db:
        return await add_file(db, settings, name, reference)


def seal(
    batch: Annotated[str, typer.Argument(help="A batch's id, or how it begins.")],
    *,
    db: _Db = None,
) -> None:
    """Say that no more jobs are added to a batch: it ends when those that it has are done."""
    print(f"sealed {asyncio.run(_seal(batch, db))}")


async def _seal(reference: str, option: str | None) -> str:
    async with existing_database(option) as db:
        found = await batches.find(db, reference)
        if found.is_inbox:
            raise NotNow(f"{found.public_id} holds jobs that were submitted singly; its server seals it")
        now = time.time()
        batches.refuse_left(found, now)
        await batches.seal_batch(db, batch_id=found.id, now=now)
        return found.public_id
