"""A batch is changed while it runs: its row at once, its jobs' deadline with it, and nothing that makes no sense."""

import asyncio

import pytest
import sqlalchemy as sa

from promptmill.errors import NotNow, UsageError
from promptmill.handling import AfterCanary, Handling
from promptmill.job import BatchState
from promptmill.store import batches, changes, control, upkeep
from promptmill.store.changes import Change
from promptmill.tables import jobs

HOUR = 3_600.0


async def change(mill, batch, **wanted) -> None:
    if await changes.change(mill.db, batch_id=batch.id, wanted=Change(**wanted), now=mill.clock()):
        await changes.spread_deadline(mill.db, batch_id=batch.id)


async def deadlines(mill, batch) -> set[float | None]:
    async with mill.db.read() as connection:
        rows = await connection.execute(sa.select(jobs.c.deadline).where(jobs.c.batch_id == batch.id).distinct())
        return set(rows.scalars())


async def test_what_is_named_changes_and_nothing_else(mill):
    batch = await mill.batch(3, handling=Handling(max_in_flight=5, budget_tokens=1_000, canary=2))
    assert batch.canary_until == 1
    await change(
        mill, batch, priority=7, weight=2.5, max_in_flight=None, requests_per_minute=60.0, budget_tokens=2_000,
        not_before=mill.clock() + 5, metadata='{"a":"b"}', canary=None,
    )  # fmt: skip
    after = await batches.get(mill.db, batch.id)
    assert after.handling == Handling(
        weight=2.5, requests_per_minute=60.0, budget_tokens=2_000, not_before=mill.clock() + 5
    )
    assert (after.priority, after.metadata, after.canary_until, after.deadline) == (7, '{"a":"b"}', None, None)


async def test_the_deadline_is_the_jobs_too_however_many_they_are(mill):
    batch = await mill.batch(12_000, deadline=mill.clock() + HOUR)
    await change(mill, batch, deadline=mill.clock() + 2 * HOUR)
    assert await deadlines(mill, batch) == {mill.clock() + 2 * HOUR}
    await change(mill, batch, completion_window="background")
    assert await deadlines(mill, batch) == {None}
    mill.clock.advance(10)
    await change(mill, batch, completion_window="1h")
    assert await deadlines(mill, batch) == {batch.created_at + HOUR}  # a window begins with the batch
    assert (await batches.get(mill.db, batch.id)).completion_window == "1h"


async def test_of_deadlines_that_are_set_at_once_the_last_one_holds_for_all_jobs(mill):
    batch = await mill.batch(15_000)
    moments = [mill.clock() + HOUR * n for n in range(1, 6)]
    await asyncio.gather(*(change(mill, batch, deadline=moment) for moment in moments))
    after = await batches.get(mill.db, batch.id)
    assert await deadlines(mill, batch) == {after.deadline}


async def test_more_time_counts_before_the_jobs_know_of_it(mill):
    batch = await mill.batch(2, deadline=mill.clock() + HOUR)
    wanted = Change(deadline=mill.clock() + 2 * HOUR)
    assert await changes.change(mill.db, batch_id=batch.id, wanted=wanted, now=mill.clock())
    mill.clock.advance(HOUR + 1)  # and whoever was to tell them has died
    assert await upkeep.expire(mill.db, now=mill.clock()) == 0
    mill.clock.advance(HOUR)
    assert await upkeep.expire(mill.db, now=mill.clock()) == 2
    assert (await batches.get(mill.db, batch.id)).state is BatchState.EXPIRED


async def test_less_time_counts_too_when_the_jobs_never_learn_of_it(mill):
    batch, other = [await mill.batch(2, deadline=mill.clock() + 2 * HOUR) for _ in "12"]
    await changes.change(mill.db, batch_id=batch.id, wanted=Change(deadline=mill.clock() + HOUR), now=mill.clock())
    mill.clock.advance(HOUR + 1)
    assert await upkeep.expire(mill.db, now=mill.clock()) == 2
    assert (await batches.get(mill.db, batch.id)).state is BatchState.EXPIRED
    assert (await batches.get(mill.db, other.id)).state is BatchState.IN_PROGRESS


async def test_claims_go_on_meanwhile(mill):
    batch, worker = await mill.batch(6_000), await mill.worker()

    async def work() -> None:
        for _ in range(10):
            await mill.record(worker, *map(mill.answered, await mill.claim(worker, batch, 50)))

    await asyncio.gather(work(), change(mill, batch, deadline=mill.clock() + HOUR))
    assert (await batches.get(mill.db, batch.id)).succeeded == 500
    assert await deadlines(mill, batch) == {mill.clock() + HOUR}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"deadline": -1.0}, "deadline ended 1 s ago"),
        ({"completion_window": "1s"}, "completion_window ended 9 s ago"),
        ({"completion_window": "soon"}, "completion_window must be like"),
        ({"completion_window": "1h", "deadline": 10.0}, "say the same"),
        ({"not_before": 20.0, "deadline": 10.0}, "not_before lies behind"),
        ({"weight": 0.0}, "weight must be 0.001 at least"),
        ({"max_in_flight": 10**9}, "max_in_flight must be 1,000,000 at most"),
    ],
)
async def test_what_makes_no_sense_is_refused_as_a_whole(mill, wanted, words):
    batch = await mill.batch(1)
    mill.clock.advance(10)
    moments = {name: mill.clock() + wanted[name] for name in ("deadline", "not_before") if name in wanted}
    with pytest.raises(UsageError, match=words):
        await change(mill, batch, priority=9, **{**wanted, **moments})
    assert (await batches.get(mill.db, batch.id)).priority == 0


async def test_a_canary_goes_before_all_jobs(mill):
    batch, worker = await mill.batch(5), await mill.worker()
    await change(mill, batch, canary=3, canary_percent=20.0, canary_then=AfterCanary.ASK)
    after = await batches.get(mill.db, batch.id)
    assert (after.canary_until, after.canary_percent, after.canary_then) == (2, 20.0, AfterCanary.ASK)
    await mill.claim(worker, batch, 1)
    with pytest.raises(NotNow, match="were started already"):
        await change(mill, batch, canary=2)


async def test_what_has_ended_is_not_changed(mill):
    batch = await mill.batch(1)
    await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())
    with pytest.raises(NotNow, match="is cancelling"):
        await change(mill, batch, priority=1)
    assert await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock()) == 1
    with pytest.raises(NotNow, match="is cancelled"):
        await change(mill, batch, priority=1)


async def test_while_its_lines_are_read_all_but_its_deadline_is_changed(mill):
    batch = await _validating(mill)
    await change(mill, batch, priority=5, canary=10)
    with pytest.raises(NotNow, match="still being read"):
        await change(mill, batch, deadline=mill.clock() + HOUR)
    assert (await batches.get(mill.db, batch.id)).canary == 10


async def _validating(mill):
    return await batches.create(mill.db, batches.NewBatch(file_id=1, source="t.jsonl", defaults="{}"), now=mill.clock())


@pytest.mark.parametrize("deadline", [float("inf"), float("nan"), 1e300, -5.0])
async def test_a_deadline_is_a_moment(mill, deadline):
    """An endless one cannot be told in any calendar, and so no list of batches either."""
    batch = await mill.batch(1)
    with pytest.raises(UsageError, match="deadline must be a moment"):
        await change(mill, batch, deadline=deadline)
    with pytest.raises(UsageError, match="deadline must be a moment"):
        await mill.batch(1, deadline=deadline)
    assert (await batches.get(mill.db, batch.id)).deadline is None
