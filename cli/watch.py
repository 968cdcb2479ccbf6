"""`promptmill watch`: the progress of a batch that others work on, until it is finished; exit codes as `run`."""

import asyncio
import os
import time
from typing import Annotated

import sqlalchemy as sa
import typer

from cli import progress, standstill
from cli.database import existing_database
from cli.exit_codes import EXIT_INTERRUPTED, EXIT_SOME_FAILED
from cli.forecast import Forecast
from cli.teller import Teller
from promptmill.engine import Database
from promptmill.job import BATCH_FINISHED, BatchState, LaneState, State
from promptmill.settings import load
from promptmill.store import batches, lanes, workers
from promptmill.store.batches import BatchRow
from worker.recorder import is_database_away, words_for

_POLL_SECONDS = 0.5


def watch(
    batch: Annotated[str | None, typer.Argument(help="A batch's id, or how it begins.", show_default="newest")] = None,
    *,
    db: Annotated[str | None, typer.Option(help="Database file or URL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Progress and summary as JSON lines on stdout.")] = False,
) -> None:
    """Follow a batch until it is finished. Ctrl-C stops the watching, not the batch."""
    try:
        code = asyncio.run(_watch(batch, db, as_json=as_json))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)


async def _watch(reference: str | None, option: str | None, *, as_json: bool) -> int:
    async with existing_database(option) as db:
        found = await batches.find(db, reference)
        look = _Look(found, Forecast(db, load(os.environ, database_url=option), found.id, time.time))
        meter = progress.Meter(found.total, look)
        mode = progress.mode_for(as_json=as_json, quiet=False)
        tell = Teller(as_json=as_json, quiet=False)
        async with progress.Progress(meter, f"{found.source}   {found.public_id}", mode, tell.console):
            while look.batch.state not in BATCH_FINISHED:
                try:
                    await look.again(db)
                except (OSError, sa.exc.SQLAlchemyError) as error:
                    if not is_database_away(error):
                        raise
                    look.lost(error)
                await asyncio.sleep(_POLL_SECONDS)
        tell.summary(look.batch, exit_code=_exit_code(look.batch))
        return _exit_code(look.batch)


def _exit_code(batch: BatchRow) -> int:
    return 0 if batch.state is BatchState.COMPLETED and batch.succeeded == batch.total else EXIT_SOME_FAILED


class _Look:
    """The last look at the database; the meter reads it."""

    def __init__(self, batch: BatchRow, forecast: Forecast) -> None:
        self.batch = batch
        self._forecast = forecast
        self._in_flight = 0
        self._waiting_for = ""

    async def again(self, db: Database) -> None:
        """Look again."""
        self.batch = await batches.get(db, self.batch.id)
        states = (await batches.counts_by_state(db, [self.batch.id])).get(self.batch.id, {})
        self._in_flight = states.get(State.RUNNING, 0)
        standing = await standstill.reasons(db, self.batch, now=self._forecast.clock())
        self._waiting_for = "; ".join(standing) or await _why(db, self.batch, states)
        await self._forecast.look()

    def lost(self, error: Exception) -> None:
        """The database cannot be asked now; it is looked for, as workers do."""
        self._in_flight, self._waiting_for = 0, f"the database is away ({words_for(error)})"

    def __call__(self) -> progress.Reading:
        batch = self.batch
        failed = batch.failed + batch.invalid
        tokens = batch.prompt_tokens + batch.completion_tokens
        return progress.Reading(
            batch.done, failed, batch.retried, self._in_flight, tokens, self._waiting_for, self._forecast.outlook,
            self._forecast.clock(),
        )  # fmt: skip


async def _why(db: Database, batch: BatchRow, states: dict[State, int]) -> str:
    """Why it is not faster, as far as the database tells."""
    now = time.time()
    at_work = await workers.at_work(db, now=now)
    if not states.get(State.RUNNING) and at_work.since is None:
        return "no worker is alive: start one, or see promptmill doctor"
    names = await batches.lane_names(db, batch.id)
    reasons = []
    for row in await lanes.read(db, names):
        if row.id in at_work.not_served:
            reasons.append(f"{row.model}: {standstill.not_served(row)}")
        elif row.state is LaneState.HALTED:
            reasons.append(f"{row.model} halted: {row.reason} (mend it, then: promptmill resume)")
        elif row.paused_until is not None and row.paused_until > now:
            reasons.append(f"{row.model} paused for {row.paused_until - now:.0f} s")
    if states.get(State.WAITING):
        reasons.append(f"{states[State.WAITING]:,} wait for their next try")
    return "; ".join(reasons[:3])
