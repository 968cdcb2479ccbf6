"""`promptmill pause` and `resume`: a batch, a lane, a tenant, or everything. Workers obey within a second."""

import asyncio
import time
from typing import Annotated

import typer

from cli import standstill
from cli.database import existing_database
from cli.ringing import ring
from promptmill.engine import Database
from promptmill.errors import NotFound, UsageError
from promptmill.job import LaneState
from promptmill.store import batches, control, lanes, pauses, tenant_terms
from promptmill.store.lanes import LaneRow
from promptmill.store.pauses import What

_Db = Annotated[str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")]
_Lane = Annotated[str | None, typer.Option(metavar="MODEL|ID", help="A lane: all lanes of a model, or one by its id.")]
_Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="All batches of a tenant.")]
_Everything = Annotated[bool, typer.Option("--all", help="Everything.")]


def pause(
    batch: Annotated[str | None, typer.Argument(help="A batch's id, or how it begins.")] = None,
    *,
    lane: _Lane = None,
    tenant: _Tenant = None,
    everything: _Everything = False,
    db: _Db = None,
) -> None:
    """Start no more calls of a batch, a lane, a tenant or everything; those under way end and are kept."""
    if [batch, lane, tenant, everything or None].count(None) != 3:  # noqa: PLR2004 - of four, one is given
        raise UsageError("say what to pause: one of BATCH, --lane MODEL, --tenant NAME, --all")
    asyncio.run(_pause(batch, lane, tenant, db))
    ring(db)


async def _pause(batch: str | None, lane: str | None, tenant: str | None, option: str | None) -> None:
    async with existing_database(option) as db:
        now = time.time()
        if batch is not None:
            found = await batches.find(db, batch)
            _say(f"paused {found.public_id}", await control.pause(db, batch_id=found.id, now=now))
        elif lane is not None:
            for row in await _lanes(db, lane):
                _say(f"paused {_named(row)}", await pauses.pause(db, What.LANE, row.id, now=now))
        elif tenant is not None:
            owner = await tenant_terms.find(db, tenant)
            _say(f"paused the tenant {owner.name}", await pauses.pause(db, What.TENANT, owner.id, now=now))
        else:
            _say("paused everything", await pauses.pause(db, What.ALL, now=now))


def _say(words: str, is_new: bool) -> None:
    print(words if is_new else f"{words}, as it was before")


def resume(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[BATCH|MODEL]", help="A batch, or the lanes of a model.", show_default="all halted lanes"
        ),
    ] = None,
    *,
    lane: _Lane = None,
    tenant: _Tenant = None,
    everything: Annotated[bool, typer.Option("--all", help="What was paused with pause --all.")] = False,
    db: _Db = None,
) -> None:
    """Go on with what was paused, by hand, by a canary or a budget; let halted lanes try again."""
    if [what, lane, tenant, everything or None].count(None) < 3:  # noqa: PLR2004 - of four, one at most
        raise UsageError("say one of BATCH, MODEL, --lane MODEL, --tenant NAME, --all")
    asyncio.run(_resume(what, lane, tenant, db, everything=everything))
    ring(db)


async def _resume(
    what: str | None, lane: str | None, tenant: str | None, option: str | None, *, everything: bool
) -> None:
    async with existing_database(option) as db:
        if everything:
            resumed = await pauses.resume(db, What.ALL, now=time.time())
            print("resumed everything" if resumed else "it was not everything that is paused")
        elif tenant is not None:
            owner = await tenant_terms.find(db, tenant)
            resumed = await pauses.resume(db, What.TENANT, owner.id, now=time.time())
            print(f"resumed the tenant {owner.name}" if resumed else f"the tenant {owner.name} is not paused")
        elif lane is not None:
            await _resume_lanes(db, await _lanes(db, lane))
        elif what is not None and what.startswith("batch_"):
            await _resume_batch(db, what)
        else:
            await _resume_halted(db, what)
        for each, name in await pauses.named(db):
            print(f"still paused: {standstill.named(each, name)}")


async def _resume_batch(db: Database, reference: str) -> None:
    found = await batches.find(db, reference)
    why = (await pauses.of_batches(db, [found.id])).get(found.id)
    if why is None or not await control.resume(db, batch_id=found.id, now=time.time()):
        print(f"{found.public_id} is not paused")
        return
    print(f"resumed {found.public_id}" + (f" (it was paused: {why.reason})" if why.reason else ""))


async def _resume_halted(db: Database, model: str | None) -> None:
    """Lanes that were halted by what their upstream said; of one model also those that were paused by hand."""
    if model is not None:
        await _resume_lanes(db, await _lanes(db, model), otherwise=f"no lane of {model} is halted or paused")
        return
    halted = [row for row in await lanes.read(db) if row.state is LaneState.HALTED]
    await _resume_lanes(db, halted, otherwise="no lane is halted")


async def _resume_lanes(
    db: Database, rows: list[LaneRow], *, otherwise: str = "it was neither paused nor halted"
) -> None:
    await lanes.resumed(db, lane_ids=[row.id for row in rows])
    told = False
    for row in rows:
        was_paused = await pauses.resume(db, What.LANE, row.id, now=time.time())
        if row.state is LaneState.HALTED:
            print(f"resumed {_named(row)} (it was halted: {row.reason})")
        elif was_paused:
            print(f"resumed {_named(row)}")
        told |= was_paused or row.state is LaneState.HALTED
    if not told:
        print(otherwise)


async def _lanes(db: Database, reference: str) -> list[LaneRow]:
    """The lanes of a model, or the one with this id. Raises NotFound, naming those that there are."""
    rows = await lanes.read(db)
    found = [row for row in rows if reference in (row.model, str(row.id))]
    if not found:
        known = "; ".join(f"{row.id}: {row.model} at {row.upstream}" for row in rows) or "none yet"
        raise NotFound(f"no lane {reference!r}; there are: {known}")
    return found


def _named(row: LaneRow) -> str:
    return f"{row.model} at {row.upstream}"
