"""Why a batch stands still by somebody's word (a pause, its start, its canary), in sentences; and going on after a
canary that asks."""

import sys
import time

from cli.embedded import Interrupted, interruptible_reading
from cli.moments import shown
from cli.teller import Teller
from promptmill.engine import Database
from promptmill.handling import AfterCanary
from promptmill.job import BATCH_FINISHED
from promptmill.store import batches, canary, control, pauses
from promptmill.store.batches import BatchRow
from promptmill.store.budgets import BUDGET
from promptmill.store.lanes import LaneRow
from promptmill.store.pauses import Pause, What


async def reasons(db: Database, batch: BatchRow, *, now: float, option: str = "") -> tuple[str, ...]:
    """A sentence for each, with the command that ends it; none for a batch that has ended. `option`: how the commands
    name the database, where they must."""
    if batch.state in BATCH_FINISHED:
        return ()
    told = []
    names = await batches.lane_names(db, batch.id)
    for pause, name in await pauses.named(db):
        match pause.what:
            case What.ALL:
                told.append(f"everything is paused; go on with: promptmill resume --all{option}")
            case What.BATCH if pause.id == batch.id:
                why = f"paused: {pause.reason}" if pause.reason else "paused by hand"
                spent = (pause.reason or "").startswith(BUDGET)
                first = f"promptmill change {batch.public_id} --budget-…{option}, then " if spent else ""
                told.append(f"{why}; go on with: {first}promptmill resume {batch.public_id}{option}")
            case What.TENANT if pause.id == batch.tenant_id:
                told.append(f"its tenant is paused; go on with: promptmill resume --tenant {name}{option}")
            case What.LANE if pause.id in names:
                told.append(f"{name} is paused by hand; go on with: promptmill resume --lane {pause.id}{option}")
    if batch.not_before is not None and batch.not_before > now:
        told.append(f"starts at {shown(batch.not_before)}")
    if batch.canary_until is not None:
        told.append(f"canary: its first {batch.canary:,} jobs run before the rest")
    if batch.is_open:
        told.append(f"open: jobs can be added (submit --append) until: promptmill seal {batch.public_id}{option}")
    return tuple(told)


def note(batch: BatchRow, *, is_paused: bool, now: float) -> str | None:
    """The same in a word or two, for a list; None: nothing but its turn."""
    if batch.state in BATCH_FINISHED:
        return None
    if is_paused:
        return "paused"
    if batch.not_before is not None and batch.not_before > now:
        return f"from {shown(batch.not_before)}"
    return None if batch.canary_until is None else "canary"


def named(pause: Pause, name: str | None) -> str:
    """What is paused, with the command that ends it."""
    match pause.what:
        case What.ALL:
            return "everything (promptmill resume --all)"
        case What.BATCH:
            return f"{name} (promptmill resume {name})"
        case What.TENANT:
            return f"the tenant {name} (promptmill resume --tenant {name})"
        case What.LANE:
            return f"the lane {name} (promptmill resume --lane {pause.id})"


def not_served(lane: LaneRow) -> str:
    """Why the jobs of a lane wait for ever, and what to do."""
    return (
        f"no worker serves {lane.upstream}; start one that knows it (PROMPTMILL_UPSTREAM_URL, or [[upstream]] in "
        "promptmill.toml), or cancel what was submitted for it"
    )


async def is_paused(db: Database, batch: BatchRow) -> bool:
    """Is the batch itself? Then none of its jobs is started until somebody resumes it."""
    return bool(await pauses.of_batches(db, [batch.id]))


async def goes_on(db: Database, batch: BatchRow, tell: Teller, *, may_ask: bool) -> bool:
    """The batch is paused. Where its canary went well and somebody is there, ask whether to run the rest."""
    why = (await pauses.of_batches(db, [batch.id])).get(batch.id)
    if why is None:
        return True  # somebody resumed it meanwhile
    asks = batch.canary_then is AfterCanary.ASK and canary.went_well(why.reason)
    if not (asks and may_ask and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    tell.say(f"{why.reason}")
    with interruptible_reading() as reading:
        try:
            answer = reading.answer("go on? [y/N] ")
        except Interrupted:
            return False
    if not answer.strip().lower().startswith("y"):
        return False
    await control.resume(db, batch_id=batch.id, now=time.time())
    return True
