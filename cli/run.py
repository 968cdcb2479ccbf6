"""`promptmill run`: a file of prompts in, every answer out, once; the same line again finishes what was left."""

import asyncio
import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from cli import handling_options, progress
from cli.dry_run import DryRun, dry_run_of, show
from cli.embedded import (
    Interrupted,
    Reading,
    interruptible_reading,
    opened,
    sole_worker,
    stopping_on_signals,
    take_over,
    worker_name,
)
from cli.exit_codes import EXIT_INTERRUPTED, EXIT_SOME_FAILED
from cli.export import check_places, database_files, write_outputs
from cli.forecast import Forecast
from cli.standstill import goes_on, is_paused, reasons
from cli.teller import Teller, shortened
from promptmill.engine import Database
from promptmill.errors import NotNow, UsageError
from promptmill.handling import priority_number
from promptmill.intake import Source, Terms, take_in
from promptmill.job import BatchState
from promptmill.jsonl import open_input
from promptmill.request import Defaults
from promptmill.settings import Settings, load
from promptmill.store import batches, lanes, results
from promptmill.store.admissions import HELD_SECONDS
from promptmill.store.batches import BatchRow
from worker.attempt import Desk
from worker.drain import Drain, DrainTerms
from worker.garbage import collect_seldom
from worker.limits.memory import MemoryLimiter
from worker.sockets import allow_sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line asks for."""

    input: str
    out: Path | None
    errors: Path | None
    terms: Terms
    fresh: bool
    as_json: bool
    quiet: bool


def run(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="A file of prompts; - is standard input.")],  # noqa: A002 - it is what the user sees
    out: Annotated[str | None, typer.Option(help="Write results here, in input order (- for stdout).")] = None,
    errors: Annotated[
        str | None, typer.Option(help="Write jobs that failed here, and only the others to --out.")
    ] = None,
    db: Annotated[str | None, typer.Option(help="Database file or URL.", show_default="promptmill.sqlite3")] = None,
    base_url: Annotated[str | None, typer.Option(help="The endpoint.", show_default="Together's")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the key.")] = None,
    model: Annotated[str | None, typer.Option(help="For lines that name no model.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="For lines that name no url, e.g. /v1/completions.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Requests per minute, at most.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute, at most.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Calls at once, at most.", show_default="256")] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help="Tries per job; waiting is not a try.", show_default="6")
    ] = None,
    grace: Annotated[
        float | None, typer.Option(help="Seconds that Ctrl-C waits for calls under way.", show_default="10")
    ] = None,
    priority: handling_options.Priority = "normal",
    window: handling_options.Window = None,
    weight: handling_options.Weight = None,
    budget_tokens: handling_options.BudgetTokens = None,
    budget_cost: handling_options.BudgetCost = None,
    canary: handling_options.Canary = None,
    canary_percent: handling_options.CanaryPercent = None,
    canary_ask: handling_options.CanaryAsk = False,
    not_before: handling_options.NotBefore = None,
    skip_bad_lines: Annotated[bool, typer.Option("--skip-bad-lines", help="Run the good lines of a bad file.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming an earlier run.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check the input, and say what it will take in tokens, money and time."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Progress and summary as JSON lines on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the summary.")] = False,
) -> None:
    """Work a file of prompts through an endpoint. Run the same line again to resume."""
    import uvloop  # noqa: PLC0415 - not every command needs it

    if as_json and "-" in (out, errors):
        raise UsageError("--json and --out - both write to stdout; give --out a file")
    settings = load(
        os.environ,
        database_url=db,
        base_url=base_url,
        key_env=api_key_env,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        max_in_flight=max_in_flight,
        max_attempts=max_attempts,
        grace_seconds=grace,
    )
    handled = handling_options.handling_of(
        weight=weight, budget_tokens=budget_tokens, budget_cost=budget_cost, canary=canary,
        canary_percent=canary_percent, canary_ask=canary_ask, not_before=not_before,
    )  # fmt: skip
    terms = Terms(
        defaults=Defaults(model, endpoint), skip_bad_lines=skip_bad_lines, priority=priority_number(priority),
        deadline=handling_options.deadline_of(window, None, handled, now=time.time()), completion_window=window,
        handling=handled,
    )  # fmt: skip
    options = RunOptions(
        input=input, out=Path(out) if out else None, errors=Path(errors) if errors else None, terms=terms, fresh=fresh,
        as_json=as_json, quiet=quiet,
    )  # fmt: skip
    if dry_run:
        show(uvloop.run(_dry_run(options, settings)), as_json=as_json)
        return
    try:
        code = uvloop.run(_run(options, settings))
    except KeyboardInterrupt:  # before the work began, or after it ended
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)


async def _run(options: RunOptions, settings: Settings) -> int:
    tell = Teller(as_json=options.as_json, quiet=options.quiet)
    async with opened(settings.database_url) as db:
        # Known before anything is sent, not after all of it is paid for.
        check_places(options.out, options.errors, spare=[Path(options.input), *database_files(db)])
        with sole_worker(db) as sole:
            clock = time.time
            await take_over(db, sole=sole, now=clock())
            batch = await _batch(db, settings, options, tell)
            if batch is None:
                return EXIT_INTERRUPTED
            drain, interrupted = None, False
            while await batches.running(db, batch.id):
                batch = await batches.get(db, batch.id)
                if await is_paused(db, batch) and not await goes_on(db, batch, tell, may_ask=not options.as_json):
                    break
                drain, interrupted = await _work(db, settings, batch, options, tell)
                if interrupted or not await is_paused(db, batch):
                    break  # it is done, or its lanes are halted
        return await _finish(db, options, batch.id, drain, tell, interrupted=interrupted)


async def _dry_run(options: RunOptions, settings: Settings) -> DryRun:
    key = None
    if not options.fresh and not _is_pipe(options.input):
        with open_input(options.input) as chunks:
            key = _run_key(_digest_of(chunks), options, settings)
    terms = replace(options.terms, run_key=key)
    return await dry_run_of(options.input, settings, terms)


async def _work(
    db: Database, settings: Settings, batch: BatchRow, options: RunOptions, tell: Teller
) -> tuple[Drain, bool]:
    clock = time.time
    names = await batches.lane_names(db, batch.id)
    await lanes.resumed(db, lane_ids=names)
    allow_sockets(settings)
    collect_seldom()
    desk = Desk(settings, clock=clock)
    for upstream, _ in names.values():
        desk.client(upstream)  # a key that no header can carry, a missing CA file: known before the first call
    terms = DrainTerms(worker_name=worker_name(), only_batches=frozenset({batch.id}), until_done=True)
    drain = Drain(db, settings, desk, MemoryLimiter(clock), terms, clock=clock)
    stop = asyncio.Event()
    forecast = Forecast(db, settings, batch.id, clock)

    def first() -> None:
        stop.set()
        if drain.counts.in_flight:
            tell.say(
                f"stopping: waiting up to {settings.grace_seconds:g} s for {drain.counts.in_flight:,} calls under way; "
                "Ctrl-C again gives them back at once"
            )

    def read() -> progress.Reading:
        counts = drain.counts
        return progress.Reading(
            batch.done + counts.succeeded + counts.failed, batch.failed + counts.failed, counts.retried,
            counts.in_flight, counts.tokens, _why(drain), forecast.outlook, clock(),
        )  # fmt: skip

    meter = progress.Meter(batch.total, read)
    mode = progress.mode_for(as_json=options.as_json, quiet=options.quiet)
    try:
        with stopping_on_signals(first, drain.abandon):
            async with forecast.looking(), progress.Progress(meter, tell.title(settings, batch), mode, tell.console):
                await drain.run(stop)
    finally:
        await desk.aclose()
    return drain, stop.is_set()


def _why(drain: Drain) -> str:
    """What keeps the run from going faster, in words."""
    reasons: dict[str, None] = {}
    for lane in drain.lanes:
        limits, model = lane.limits, lane.row.model
        if lane.pause is not None:
            at = time.strftime("%H:%M:%S", time.localtime(lane.pause.until))
            reasons[f"{model} paused until {at}: {shortened(lane.pause.words)}"] = None
            continue
        match lane.waiting_for:
            case "":
                continue
            case "rpm":
                words = f"limited by requests per minute ({limits.requests_per_minute:,.0f})"
            case "tpm":
                words = f"limited by tokens per minute ({limits.tokens_per_minute:,.0f})"
            case "in_flight":
                words = f"limited by calls in flight ({limits.max_in_flight:,})"
            case "learned pace" if lane.pace.rate is not None:
                words = f"limited by what the endpoint refuses (about {60 * lane.pace.rate:,.0f} requests per minute)"
            case "bytes":
                words = "limited by bytes in flight"
            case "first answers":
                words = f"waiting for the first answers of {model}"
            case other:
                words = f"{model} {other}"
        reasons[words] = None
    return "; ".join(list(reasons)[:3])


# ---------------------------------------------------------------------- the batch


async def _batch(db: Database, settings: Settings, options: RunOptions, tell: Teller) -> BatchRow | None:
    """The batch of this input: the one that an earlier run left, or a new one. None when interrupted."""
    with interruptible_reading() as reading:
        try:
            batch = await _resumed_or_taken_in(db, settings, options, tell, reading)
        except Interrupted:
            batch = None
    if batch is None or reading.interrupted:
        tell.say(f"interrupted while reading the input; nothing was sent. Start again with: {tell.command_line()}")
        return None
    return batch


async def _resumed_or_taken_in(
    db: Database, settings: Settings, options: RunOptions, tell: Teller, reading: Reading
) -> BatchRow:
    # A file is read twice, and not taken in where it was before; a pipe can be read only once.
    key = None
    if not _is_pipe(options.input):
        key = _run_key(_digest_of(reading.chunks(options.input)), options, settings)
    if key is not None and (found := await _earlier(db, key, options)) is not None:
        tell.resuming(found, db)
        return found
    digest = hashlib.blake2b()
    chunks = reading.chunks(options.input)
    source = Source(
        name="stdin" if options.input == "-" else options.input,
        chunks=_digesting(chunks, digest.update) if key is None else chunks,
        folder=Path() if key is None else Path(options.input).parent,
    )
    terms = replace(options.terms, run_key=key)
    with tell.reading() as lines:
        taken = await take_in(db, settings, source, terms, clock=time.time, progress=lines)
    if key is None:
        key = _run_key(digest.hexdigest(), options, settings)
        if (found := await _earlier(db, key, options)) is not None:
            await batches.discard(db, batch_id=taken.batch.id)
            tell.resuming(found, db)
            return found
        await batches.name_run(db, batch_id=taken.batch.id, run_key=key)
    if taken.skipped:
        tell.bad_lines(taken.errors, taken.skipped, "skipped; each has a result with its reason")
    return taken.batch


async def _earlier(db: Database, key: str, options: RunOptions) -> BatchRow | None:
    found = await batches.by_run_key(db, key)
    if found is None:
        return None
    if found.state is BatchState.VALIDATING:  # its intake died half way
        if db.is_sqlite:  # on which one command works at a time
            await batches.discard(db, batch_id=found.id)
        elif not await batches.discard_left(db, found, now=time.time()):
            raise NotNow(
                f"another command is reading the same input, as {found.public_id}; where it was killed, try again "
                f"{HELD_SECONDS:g} s later"
            )
        return None
    if options.fresh:
        await batches.forget_run(db, batch_id=found.id)
        return None
    return found


def _is_pipe(name: str) -> bool:
    return name == "-" or (Path(name).exists() and not Path(name).is_file())


def _digesting(chunks: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        update(chunk)
        yield chunk


def _digest_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _run_key(content: str, options: RunOptions, settings: Settings) -> str:
    """What makes two runs the same: the input's bytes, where they go, and what is filled in."""
    where = sorted((upstream.name, upstream.url) for upstream in settings.upstreams)
    facts = [content, where, options.terms.defaults.to_json(), options.terms.skip_bad_lines]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=20).hexdigest()


# ---------------------------------------------------------------------- the end


async def _finish(
    db: Database, options: RunOptions, batch_id: int, drain: Drain | None, tell: Teller, *, interrupted: bool
) -> int:
    batch = await batches.get(db, batch_id)
    unfinished = batch.total - batch.done
    if interrupted and unfinished:
        tell.say(f"interrupted: {batch.done:,} of {batch.total:,} done, the rest waits in {tell.database(db)}")
        tell.say(f"resume with: {tell.command_line()}")
        tell.summary(batch, exit_code=EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    if options.out or options.errors:
        await write_outputs(db, batch, options.out, options.errors)
    code = 0 if batch.succeeded == batch.total else EXIT_SOME_FAILED
    if drain is not None and (halts := drain.halts()):
        tell.halted(halts, await batches.lane_names(db, batch_id), drain.settings, unfinished)
    for reason, count, message in (await results.failure_counts(db, batch_id))[:5]:
        tell.say(f"  {count:,} x {reason}: {shortened(message)}")
    tell.summary(batch, exit_code=code)
    standing = await reasons(db, batch, now=time.time(), option=f" --db {shlex.quote(tell.database(db))}")
    for line in (*standing, *([f"and then: {tell.command_line()}"] if standing else [])):
        tell.say(line)
    if batch.cancelled and batch.finished_at is not None:
        again = f"promptmill retry {batch.public_id} --cancelled --db {shlex.quote(tell.database(db))}"
        tell.say(f"run those that were cancelled with: {again}, and then: {tell.command_line()}")
    if not options.out and batch.done:
        tell.say(f"answers are in {tell.database(db)}; print them with: promptmill results --db {tell.database(db)}")
    return code
