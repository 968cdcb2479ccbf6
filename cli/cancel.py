"""`promptmill cancel`: stop a batch, or a job. It takes effect at once; results are written behind it."""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Final

import typer

from cli.database import existing_database
from cli.embedded import sole_worker, take_over
from cli.ringing import ring
from promptmill.engine import Database
from promptmill.errors import NotFound, NotNow, StoreError
from promptmill.job import BatchState, State
from promptmill.store import aborts, admissions, batches, control, jobs, workers
from promptmill.store.aborts import Stopped
from promptmill.store.batches import BatchRow

#: So long is waited for a large batch without a word.
_WAIT_SECONDS: Final = 0.5


def cancel(
    what: Annotated[
        str, typer.Argument(metavar="BATCH|JOB", help="A batch's id, or how it begins; or a single job's.")
    ],
    *,
    abort: Annotated[bool, typer.Option("--abort", help="Break off calls under way, too.")] = False,
    db: Annotated[
        str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")
    ] = None,
) -> None:
    """Stop a batch, or a single job: nothing more is sent, calls under way are kept."""
    asyncio.run(_cancel_job(what, db, abort=abort) if jobs.parsed_id(what) else _cancel(what, db, abort=abort))


async def _cancel(reference: str, option: str | None, *, abort: bool) -> None:
    async with existing_database(option) as db:
        found = await batches.find(db, reference)
        if found.is_inbox:
            raise NotNow(
                f"{found.public_id} holds jobs that were submitted singly, and takes more of them; cancel them one by "
                "one (promptmill cancel JOB), or start none of them: promptmill pause"
            )
        now = time.time()
        if found.state is BatchState.VALIDATING and await admissions.stop(db, batch_id=found.id, now=now):
            print(f"{found.public_id} is cancelled while its lines are read; a server removes those that were")
            return
        if await batches.discard_left(db, found, now=now):
            print(f"{found.public_id} is removed: the command that read its lines is gone, and nothing of it was sent")
            return
        if not await control.cancel(db, batch_id=found.id, abort=abort, now=now):
            state = (await batches.get(db, found.id)).state
            if state is BatchState.VALIDATING:
                raise NotNow(
                    f"the lines of {found.public_id} are still being read by another command; end that. Where it was "
                    f"killed, cancel works {admissions.HELD_SECONDS:g} s later"
                )
            raise NotNow(f"{found.public_id} is {state.value}; there is nothing left to cancel")
        ring(option)
        if await control.under_way(db, batch_id=found.id):
            await _reap(db, now)
        await _finish(db, found, now)
        after = await batches.get(db, found.id)
        under_way = (await control.under_way(db, batch_id=found.id)) if after.finished_at is None else 0
        print(
            f"{after.public_id} is {after.state.value}: {after.cancelled:,} cancelled, {after.succeeded:,} done"
            + (f"; {under_way:,} calls under way are {_end(abort=abort)}" if under_way else "")
        )
        if left := after.total - after.done - under_way:
            print(f"{left:,} more are cancelled by the workers, behind this command; see: promptmill status")


async def _cancel_job(public_id: str, option: str | None, *, abort: bool) -> None:
    async with existing_database(option) as db:
        found = await jobs.get(db, public_id, tenant_id=None)
        if found is None:
            raise NotFound(f"no job {public_id}")
        now = time.time()
        stopped = await aborts.stop(db, found.key, abort=abort, now=now)
        if stopped is Stopped.ASKED:
            ring(option)
            await _reap(db, now)
            await aborts.carry_out(db, now=now)  # where its worker was dead
        after = await jobs.get(db, public_id, tenant_id=None)
        is_out = after is not None and after.state is State.RUNNING
        if stopped is not Stopped.NOT:
            print(f"{public_id} is cancelled" + ("; its call is broken off" if is_out else ""))
        elif is_out:
            raise NotNow(f"{public_id} is running; its call ends and is kept, unless --abort breaks it off")
        else:
            state = (after or found).state.value
            raise NotNow(f"{public_id} is {state}; there is nothing left to cancel")


async def _reap(db: Database, now: float) -> None:
    """Calls of a worker that died are out for ever where nobody is there to notice: this command is, then."""
    if db.is_sqlite:
        with suppress(StoreError), sole_worker(db) as sole:  # who holds the lock is alive, and sees to its calls
            await take_over(db, sole=sole, now=now)
    elif not await workers.alive(db, now=now):
        await take_over(db, sole=False, now=now)


async def _finish(db: Database, batch: BatchRow, now: float) -> None:
    """Write the results. That takes a moment where they are many; where workers are alive, it is left to them."""
    work = asyncio.create_task(control.finish_cancelling(db, batch_id=batch.id, now=now))
    await asyncio.wait([work], timeout=_WAIT_SECONDS)
    if not work.done() and await workers.alive(db, now=now):
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return
    if not work.done():
        print(f"{batch.public_id} is cancelling: nothing more is sent; its results are being written", flush=True)
    await work


def _end(*, abort: bool) -> str:
    return "broken off" if abort else "kept when they end"
