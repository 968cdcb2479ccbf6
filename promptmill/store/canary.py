"""The first jobs of a batch, run before the rest: when all of them have ended, the batch goes on or is paused.

Decided once, whoever looks: the batch is locked, and a canary that is decided has no end any more (`canary_until`).
"""

from collections import Counter
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.handling import AfterCanary
from promptmill.job import BatchState, State
from promptmill.store.pauses import What, pause_in
from promptmill.store.rows import batch_in
from promptmill.tables import batches, jobs, pauses, results


async def decide(db: Database, *, now: float) -> int:
    """Decide every canary that has ended; returns how many. What was decided well needs no word: the rest of the batch
    can be claimed. Else the batch is paused, with the reason; to resume it is to run the rest."""
    async with db.read() as connection:
        batch_ids = list((await connection.execute(_TO_DECIDE)).scalars())
    decided = 0
    for batch_id in batch_ids:
        async with db.write() as connection:
            decided += await _decide(connection, batch_id, now)
    return decided


_ENDED: Final = sa.not_(sa.exists().where(jobs.c.batch_id == batches.c.id, jobs.c.position <= batches.c.canary_until))
_TO_DECIDE: Final = (
    sa.select(batches.c.id)
    .where(batches.c.finished_at.is_(None), batch_in(BatchState.IN_PROGRESS), batches.c.canary_until.is_not(None))
    .where(_ENDED)
    .order_by(batches.c.id)
)


async def _decide(connection: AsyncConnection, batch_id: int, now: float) -> bool:
    # Who writes results holds the batch, so with it locked they are all there.
    locked = sa.select(batches.c.id).where(batches.c.id == batch_id).with_for_update()
    await connection.execute(locked)
    found = sa.select(batches.c.canary_until, batches.c.canary_percent, batches.c.canary_then)
    still = sa.and_(batches.c.id == batch_id, batch_in(BatchState.IN_PROGRESS), batches.c.canary_until.is_not(None))
    row = (await connection.execute(found.where(still, _ENDED))).one_or_none()
    if row is None:
        return False  # somebody else did, or a job of it was started again
    theirs = sa.and_(results.c.batch_id == batch_id, results.c.position <= row.canary_until)
    by_state = sa.select(results.c.state, sa.func.count()).where(theirs).group_by(results.c.state)
    counts = Counter({State(state): count for state, count in await connection.execute(by_state)})
    reason = verdict(counts, percent=row.canary_percent, then=AfterCanary(row.canary_then))
    await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(canary_until=None))
    if reason and not await pause_in(connection, What.BATCH, batch_id, now=now, reason=reason):
        # Paused by hand before: whoever resumes it should know.
        known = sa.and_(pauses.c.what == What.BATCH, pauses.c.id == batch_id)
        await connection.execute(sa.update(pauses).where(known).values(reason=reason))
    return True


def verdict(counts: Counter[State], *, percent: float, then: AfterCanary) -> str | None:
    """Why the batch is to be paused after its canary, whose jobs ended like this; None: it goes on. A job that failed
    or was not answered in time speaks against it; a line that was wrong was never sent, and says nothing."""
    total = sum(counts.values()) - counts[State.INVALID]
    bad = counts[State.FAILED] + counts[State.EXPIRED]
    share = 100 * bad / total if total else 0.0
    if share > percent:
        return f"canary: {bad:,} of {total:,} failed ({share:.3g} %), more than {percent:g} %"
    if then is AfterCanary.ASK:
        return f"canary: {total - bad:,} of {total:,} succeeded{_ASKS}"
    return None


_ASKS: Final = "; resume to run the rest"


def went_well(reason: str | None) -> bool:
    """Is this why a batch is paused whose canary only asks?"""
    return reason is not None and reason.endswith(_ASKS)
