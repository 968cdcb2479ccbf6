"""`--dry-run` of `run` and `submit`: what would come of an input. Nothing is stored and nothing is sent."""

import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import msgspec

from cli.database import existing_database
from cli.embedded import opened
from cli.foresight_view import amount, duration, in_time, span
from cli.progress import quantity
from promptmill import estimate
from promptmill.engine import Database, database_url
from promptmill.errors import InputError
from promptmill.estimate import Estimate, LaneEstimate
from promptmill.foresight import UNSEEN_ANSWER_TOKENS, Interval
from promptmill.intake import Source, Terms, dry_run
from promptmill.intake.dry_run import ERRORS_KEPT, Assay, Looking
from promptmill.job import BatchState
from promptmill.jsonl import open_input
from promptmill.settings import Settings
from promptmill.store import batches, outlook
from promptmill.store.batches import BatchRow
from promptmill.told import dry_run_told

_LINES_SHOWN = 20
#: A tenant that is not made yet.
_NOBODY = 0
#: What keeps a lane from being faster, as people call it.
_LIMITS = {
    "pace": "the pace of the upstream",
    "requests_per_minute": "its requests per minute",
    "tokens_per_minute": "its tokens per minute",
    "max_in_flight": "its calls in flight",
    "batch_requests_per_minute": "the requests per minute of the batch or its tenant",
    "batch_tokens_per_minute": "the tokens per minute of the batch or its tenant",
    "batch_max_in_flight": "the calls in flight of the batch or its tenant",
}


@dataclass(frozen=True, slots=True)
class DryRun:
    """What an input has, and what is to be expected of it."""

    source: str
    assay: Assay
    estimate: Estimate
    at: float
    resumes: BatchRow | None = None  # what an earlier run left; then the rest of it is told of


async def dry_run_of(input_name: str, settings: Settings, terms: Terms, *, tenant: str | None = None) -> DryRun:
    """Read the input as `run` and `submit` do; `terms.run_key` is that of an earlier run, which would be resumed.
    `tenant` is one's name; one who is not made yet is like all others.

    Raises UsageError when it cannot be read, and InputError as they do: for wrong lines, unless `skip_bad_lines`.
    """
    asked = estimate.Terms(
        tenant_id=terms.tenant_id, priority=terms.priority, deadline=terms.deadline, handling=terms.handling
    )
    async with _database(settings) as db:
        earlier = None if terms.run_key is None else await batches.by_run_key(db, terms.run_key)
        if earlier is not None and earlier.state is not BatchState.VALIDATING:
            return await _rest_of(db, settings, earlier, asked)
        if tenant is not None:
            terms = replace(terms, tenant_id=await outlook.tenant_named(db, tenant) or _NOBODY)
            asked = replace(asked, tenant_id=terms.tenant_id)
        name = "stdin" if input_name == "-" else input_name
        folder = Path() if input_name == "-" else Path(input_name).parent
        checker = Looking(db, settings, terms.defaults, tenant_id=terms.tenant_id, folder=folder)
        with open_input(input_name) as chunks:
            assay = await dry_run.of_stream(
                Source(name=name, chunks=chunks, folder=folder), checker, max_line_bytes=settings.max_line_bytes,
                again=(lambda: _again(input_name)) if _can_be_read_again(input_name) else None,
            )  # fmt: skip
        if assay.error_count and not terms.skip_bad_lines:
            raise InputError(name, assay.errors, assay.error_count)
        now = time.time()
        return DryRun(name, assay, await estimate.of_loads(db, settings, assay.loads, asked, now=now), now)


async def _rest_of(db: Database, settings: Settings, batch: BatchRow, asked: estimate.Terms) -> DryRun:
    names = await batches.lane_names(db, batch.id)
    left = {names[lane_id][1]: load for lane_id, load in (await outlook.loads(db, batch.id)).items()}
    now = time.time()
    expected = await estimate.of_loads(db, settings, left, replace(asked, batch_id=batch.id), now=now)
    return DryRun(batch.source, Assay(batch.total, left, batch.invalid, ()), expected, now, batch)


def _can_be_read_again(name: str) -> bool:
    return name != "-" and Path(name).is_file()


def _again(name: str) -> Iterator[bytes]:
    with open_input(name) as chunks:
        yield from chunks


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    """The database as it is; where there is none, an empty one that is gone afterwards."""
    url = database_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():  # noqa: ASYNC240
        with _folder() as folder:
            async with opened(str(folder / "empty.sqlite3")) as db:
                yield db
    else:
        async with existing_database(settings.database_url) as db:
            yield db


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="promptmill-") as name:
        yield Path(name)


def show(found: DryRun, *, as_json: bool) -> None:
    """On stdout: it is what was asked for."""
    if as_json:
        print(json.dumps(facts(found), indent=2))
    else:
        print_dry_run(found, file=sys.stdout)


def facts(found: DryRun) -> dict[str, Any]:
    """As one JSON object, the same that HTTP answers."""
    told = dry_run_told(found.assay, found.estimate, most_errors=ERRORS_KEPT)
    made: dict[str, Any] = msgspec.to_builtins(told)
    return made


def print_dry_run(found: DryRun, *, file: TextIO) -> None:
    """A paragraph for each lane, then all of them together."""
    assay, expected = found.assay, found.estimate

    def say(words: str) -> None:
        print(words, file=file)

    if found.resumes is not None:
        say(f"{found.resumes.public_id} would be resumed: {found.resumes.done:,} of {found.resumes.total:,} are done")
    for error in assay.errors[:_LINES_SHOWN]:
        say(f"  {error}")
    if assay.error_count > _LINES_SHOWN:
        say(f"  … and {assay.error_count - _LINES_SHOWN:,} more")
    wrong = f", {assay.error_count:,} wrong lines would be skipped" if assay.error_count and not found.resumes else ""
    say(f"{found.source}: {expected.jobs:,} jobs{wrong}")
    for lane in expected.lanes:
        for words in _lane(lane, expected.currency):
            say(words)
    if not expected.lanes:
        say("nothing is left to be sent")
        return
    if len(expected.lanes) > 1:
        say("together")
        say(f"  tokens  {_tokens(expected.prompt_tokens, expected.completion_tokens)}")
        say(f"  cost    {'not known' if expected.cost is None else amount(expected.cost, expected.currency)}")
    say(_ending(found))
    say("nothing was stored, and nothing was sent")


def _lane(lane: LaneEstimate, currency: str) -> Iterator[str]:
    yield f"{lane.model} at {lane.upstream}: {lane.load.jobs:,} jobs"
    guess = f", guessed: {UNSEEN_ANSWER_TOKENS} an answer, since none was seen yet" if lane.is_guess else ""
    yield f"  tokens  {_tokens(lane.load.prompt_tokens, lane.completion_tokens)}{guess}"
    missing = f"no price for {lane.model}: set [[price]] in PROMPTMILL_CONFIG"
    yield f"  cost    {missing if lane.cost is None else amount(lane.cost, currency)}"
    if lane.seconds is None or lane.limited_by is None:
        yield "  time    not known: no limit is set, and the lane has not been at work lately"
    else:
        yield f"  time    {_time(lane.seconds, lane.call_seconds)}, bounded by {_LIMITS[lane.limited_by]}"
    place = lane.standing
    if place.ahead or place.beside:
        yield f"  queue   {place.ahead:,} jobs go first, {place.beside:,} share the lane ({place.share:.0%} is ours)"


def _tokens(prompt: int, completion: Any) -> str:
    low, likely, high = (quantity(number) for number in (completion.low, completion.likely, completion.high))
    return f"{quantity(prompt)} in, about {likely} out ({low} to {high})"


def _time(seconds: Interval, call_seconds: float | None) -> str:
    words = f"about {duration(seconds.likely)} ({span(seconds)})"
    return words if call_seconds is not None else f"{words} and the time of one call, which is not known yet"


def _ending(found: DryRun) -> str:
    seconds, deadline = found.estimate.foresight.seconds, found.estimate.deadline
    if seconds is None:
        return "how long it takes cannot be told"
    words = f"takes {_time(seconds, found.estimate.call_seconds)}"
    return words if deadline is None else f"{words}, {in_time(deadline - found.at - seconds.likely)}"
