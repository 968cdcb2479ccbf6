"""`promptmill schedule`: what is submitted again and again, or once at a time. Any worker fires it, `serve` too."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer

from api.schedule_facts import fire_shown, schedules_shown
from cli import handling_options as options
from cli import moments, schedule_view
from cli.database import existing_database
from cli.embedded import opened, worker_name
from cli.ringing import ring
from promptmill import schedules as rule
from promptmill.engine import Database
from promptmill.errors import InputError, UsageError
from promptmill.handling import priority_number, window_seconds
from promptmill.intake import scheduling
from promptmill.intake.admit import read_in
from promptmill.intake.fire import carry_out
from promptmill.job import BatchState
from promptmill.jsonl import open_input
from promptmill.request import Defaults
from promptmill.schedules import CATCH_UP, Missed, Overlap, Schedule
from promptmill.settings import Settings, load
from promptmill.store import deciding, fires, purge, schedules, tenants, workers
from promptmill.store.fires import FireRow
from promptmill.store.schedules import FireState, NameTaken, ScheduleRow, Terms
from promptmill.tables import DEFAULT_TENANT

_Db = Annotated[str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")]
_Reference = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name, or its id.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]
_MAX_NAME = 200
_ERRORS_SHOWN = 20
#: So long a worker is waited for that takes a fire up, and looked for so often.
_WORKERS_SECONDS = 5.0
_LOOK_SECONDS = 0.05
#: Of `show`.
_FIRES_TO_COME = 5
_FIRES_SHOWN = 20

schedule = typer.Typer(
    help="Submit a file again and again, or once at a time.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip


@schedule.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    source: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A file of prompts; - is standard input.")
    ] = None,
    *,
    cron: Annotated[str | None, typer.Option(help='"minute hour day-of-month month day-of-week", or @daily.')] = None,
    at: Annotated[
        str | None, typer.Option(metavar="MOMENT", help="Once: 2026-12-01T02:00, +90m, or unix seconds.")
    ] = None,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Whose clocks are meant, e.g. Europe/Berlin.")] = "UTC",
    body: Annotated[
        list[str] | None, typer.Option(metavar="JSON", help="A line, in place of a file; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="For lines that name no model.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="For lines that name no url, e.g. /v1/completions.")] = None,
    window: options.Window = "24h",
    priority: options.Priority = "normal",
    missed: Annotated[Missed, typer.Option(help="What becomes of fires that nobody was there for.")] = Missed.ONCE,
    catch_up: Annotated[int, typer.Option(help="With --missed all: so many of them, the latest.")] = CATCH_UP,
    grace: Annotated[float, typer.Option(metavar="SECONDS", help="So late is not missed.")] = 60.0,
    overlap: Annotated[
        Overlap, typer.Option(help="What becomes of a fire while the batch before is not finished.")
    ] = Overlap.ALLOW,
    jitter: Annotated[float, typer.Option(metavar="SECONDS", help="Each fire up to so much later.")] = 0.0,
    starts: Annotated[str | None, typer.Option(metavar="MOMENT", help="No fire sooner.")] = None,
    ends: Annotated[str | None, typer.Option(metavar="MOMENT", help="No fire from then on.")] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Do not fire until it is enabled.")] = False,
    weight: options.Weight = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Of each batch: calls at once, at most.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Of each batch: requests per minute, at most.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Of each batch: tokens per minute, at most.")] = None,
    budget_tokens: options.BudgetTokens = None,
    budget_cost: options.BudgetCost = None,
    canary: options.Canary = None,
    canary_percent: options.CanaryPercent = None,
    canary_ask: options.CanaryAsk = False,
    max_attempts: Annotated[int | None, typer.Option(help="Tries per job; waiting is not a try.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose it is.", show_default="default")] = None,
    db: _Db = None,
) -> None:
    """Make a schedule of a file (or of --body); prints its id. {{ date }} and such in the lines are filled in."""
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(f"the name must have 1 to {_MAX_NAME} printable characters")
    now = time.time()
    settings = load(os.environ, database_url=db, max_attempts=max_attempts)
    when = Schedule(
        id=schedules.new_id(), cron=cron, zone=timezone, missed=missed, catch_up=catch_up, grace_seconds=grace,
        overlap=overlap, jitter_seconds=jitter, at=_moment(at, "--at", timezone, now),
        starts_at=_moment(starts, "--starts", timezone, now), ends_at=_moment(ends, "--ends", timezone, now),
    )  # fmt: skip
    rule.check(when, now=now)
    try:
        window_seconds(window or "")
    except UsageError as error:
        raise options.by_flag(error) from None
    terms = Terms(
        file_id=0, source=f"{name}.jsonl" if source is None else "stdin" if source == "-" else source,
        has_templates=False, defaults=Defaults(model, endpoint).to_json(),
        handling=options.handling_of(
            weight=weight, max_in_flight=max_in_flight, rpm=rpm, tpm=tpm, budget_tokens=budget_tokens,
            budget_cost=budget_cost, canary=canary, canary_percent=canary_percent, canary_ask=canary_ask,
        ),
        priority=priority_number(priority), completion_window=window or "", max_attempts=settings.max_attempts,
    )  # fmt: skip
    try:
        row = asyncio.run(_add(settings, name, when, terms, source, body or [], tenant, is_enabled=not disabled))
    except InputError as error:
        for line_error in error.errors[:_ERRORS_SHOWN]:
            print(f"  {line_error}", file=sys.stderr)
        raise UsageError(f"{error.source}: {error.total:,} wrong; no schedule was made") from None
    print(schedule_view.first_words(row), file=sys.stderr)
    print(row.public_id)


def _moment(text: str | None, flag: str, zone: str, now: float) -> float | None:
    """What a clock of the schedule's zone shows, unless it says otherwise."""
    if text is None:
        return None
    if re.fullmatch(r"\+\d+[smhd]|\d+(\.\d+)?", text):
        return moments.moment(text, flag, now=now)
    return rule.moment(text, zone)


async def _add(
    settings: Settings,
    name: str,
    when: Schedule,
    terms: Terms,
    path: str | None,
    bodies: list[str],
    tenant: str | None,
    *,
    is_enabled: bool,
) -> ScheduleRow:
    async with opened(settings.database_url) as db:
        owner = DEFAULT_TENANT if tenant is None else await tenants.ensure(db, tenant, now=time.time())
        with _lines(path, bodies) as chunks:
            file_id = await scheduling.keep_lines(
                db, settings, chunks, name=terms.source, defaults=Defaults.from_json(terms.defaults), tenant_id=owner,
                clock=time.time,
            )  # fmt: skip
        try:
            terms = await scheduling.looked_at(
                db, settings, name=name, when=when, terms=replace(terms, file_id=file_id), tenant_id=owner,
                now=time.time(),
            )  # fmt: skip
            return await schedules.create(
                db, name=name, when=when, terms=terms, now=time.time(), tenant_id=owner, is_enabled=is_enabled
            )
        except BaseException as error:
            await purge.remove(db, file_id)
            if isinstance(error, NameTaken):
                raise UsageError(
                    f"there is a schedule called {name!r}; remove it first, or give another name"
                ) from None
            raise


@contextmanager
def _lines(path: str | None, bodies: list[str]) -> Iterator[Iterable[bytes]]:
    if (path is None) == (not bodies):
        raise UsageError("say what to submit: a FILE, or --body (more than once for several lines), and not both")
    if path is None:
        yield [body.replace("\n", " ").encode() + b"\n" for body in bodies]
        return
    with open_input(path) as chunks:
        yield chunks


@schedule.command("list")
def list_schedules(*, as_json: _Json = False, db: _Db = None) -> None:
    """Show the schedules, the newest first."""
    rows, shown = asyncio.run(_listed(db))
    if as_json:
        print(json.dumps({"schedules": shown}, indent=2))
    else:
        schedule_view.print_list(rows, [each["last_fire_at"] for each in shown], file=sys.stdout)


async def _listed(option: str | None) -> tuple[list[ScheduleRow], list[dict[str, Any]]]:
    async with existing_database(option) as db:
        rows = await schedules.listed(db)
        return rows, await schedules_shown(db, rows)


@schedule.command()
def show(name: _Reference, *, as_json: _Json = False, db: _Db = None) -> None:
    """Show one schedule: its terms, its next fires, and what became of the last ones."""
    row, shown, past = asyncio.run(_read(db, name))
    to_come = schedule_view.to_come(row, _FIRES_TO_COME)
    if as_json:
        print(
            json.dumps({**shown, "next_fires": to_come, "history": [fire_shown(fire, row) for fire in past]}, indent=2)
        )
    else:
        schedule_view.print_one(row, shown, to_come, past, file=sys.stdout)


async def _read(option: str | None, reference: str) -> tuple[ScheduleRow, dict[str, Any], list[FireRow]]:
    async with existing_database(option) as db:
        row = await schedules.find(db, reference)
        (shown,) = await schedules_shown(db, [row])
        return row, shown, await fires.history(db, row.id, limit=_FIRES_SHOWN)


@schedule.command()
def enable(name: _Reference, *, db: _Db = None) -> None:
    """Fire from now on. What passed while it was disabled is not made up for."""
    row = asyncio.run(_switch(db, name, on=True))
    print(schedule_view.first_words(row))


@schedule.command()
def disable(name: _Reference, *, db: _Db = None) -> None:
    """Fire no more until it is enabled. Batches that it made go on."""
    row = asyncio.run(_switch(db, name, on=False))
    print(schedule_view.first_words(row))


async def _switch(option: str | None, reference: str, *, on: bool) -> ScheduleRow:
    async with existing_database(option) as db:
        row = await schedules.find(db, reference)
        switch = schedules.enable if on else schedules.disable
        return await switch(db, row.id, now=time.time())


@schedule.command()
def run(name: _Reference, *, db: _Db = None) -> None:
    """Fire now, whatever its times say; prints the batch's id."""
    settings = load(os.environ, database_url=db)
    fire = asyncio.run(_run(settings, db, name))
    ring(db)
    if fire.batch_public_id is None or fire.why is not None:
        raise UsageError(f"nothing was submitted: {fire.why}")
    print(fire.batch_public_id)


async def _run(settings: Settings, option: str | None, reference: str) -> FireRow:
    async with existing_database(option) as db:
        row = await schedules.find(db, reference)
        holder = f"cli:{worker_name()}"
        fire_id = await deciding.run_now(db, row.id, holder=holder, now=time.time())
        if await workers.alive(db, now=time.time()):  # they fire it as they do at its times: with their upstreams
            await fires.release(db, holder=holder)
            ring(option)
            if (fire := await _carried_out(db, fire_id, holder=holder)) is not None:
                return fire
        batch_id = await carry_out(db, settings, fire_id, holder=holder, clock=time.time)
        if batch_id is not None:
            await read_in(db, settings, batch_id, holder=holder, clock=time.time)
        return await fires.get(db, fire_id)


async def _carried_out(db: Database, fire_id: int, *, holder: str) -> FireRow | None:
    """The fire, when a worker has made its batch and read it in; None: none does (`promptmill run` fires nothing), and
    it is the holder's now. A worker that copies a large file is waited for."""
    give_up = time.monotonic() + _WORKERS_SECONDS
    while True:
        fire = await fires.get(db, fire_id)
        if fire.state is not FireState.DUE and fire.batch_state is not BatchState.VALIDATING:
            return fire
        if time.monotonic() > give_up:
            now = time.time()
            if fire.state is FireState.DUE and await fires.take(db, fire_id=fire_id, holder=holder, now=now):
                return None
            if fire.state is not FireState.DUE and not await workers.alive(db, now=now):
                return fire  # its batch is there, and whoever comes next reads it in
        await asyncio.sleep(_LOOK_SECONDS)


@schedule.command()
def remove(name: _Reference, *, db: _Db = None) -> None:
    """Remove it. Batches that it made stay."""
    row = asyncio.run(_remove(db, name))
    print(f"removed {row.name} ({row.public_id}); its batches stay")


async def _remove(option: str | None, reference: str) -> ScheduleRow:
    async with existing_database(option) as db:
        row = await schedules.find(db, reference)
        await schedules.remove(db, row.id, now=time.time())
        return row
