"""A batch is paused, resumed and stopped; whatever was paused, no pause outlives it."""

import pytest

from promptmill.errors import NotNow
from promptmill.job import BatchState
from promptmill.store import batches, control, lanes, pauses
from promptmill.store.active import active
from promptmill.store.pauses import What


async def claimable(mill) -> set[int]:
    return {each.batch_id for each in await active(mill.db, now=mill.clock())}


async def state_of(mill, batch) -> BatchState:
    return (await batches.get(mill.db, batch.id)).state


async def test_a_paused_batch_is_left_out_until_it_is_resumed(mill):
    one, other = await mill.batch(2), await mill.batch(2)
    assert await control.pause(mill.db, batch_id=one.id, now=mill.clock())
    assert not await control.pause(mill.db, batch_id=one.id, now=mill.clock())  # as it was before
    assert await claimable(mill) == {other.id}
    assert await control.resume(mill.db, batch_id=one.id, now=mill.clock())
    assert not await control.resume(mill.db, batch_id=one.id, now=mill.clock())
    assert await claimable(mill) == {one.id, other.id}


async def test_what_is_paused_is_called_by_its_name(mill):
    batch = await mill.batch(1, model="deep/thought")
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    await pauses.pause(mill.db, What.BATCH, batch.id, now=mill.clock(), reason="budget: all spent")
    mill.clock.advance(1)
    await pauses.pause(mill.db, What.LANE, lane_id, now=mill.clock())
    mill.clock.advance(1)
    await pauses.pause(mill.db, What.TENANT, batch.tenant_id, now=mill.clock())
    mill.clock.advance(1)
    await pauses.pause(mill.db, What.ALL, now=mill.clock())
    told = [(pause.what, name, pause.reason) for pause, name in await pauses.named(mill.db)]
    assert told == [
        (What.BATCH, batch.public_id, "budget: all spent"),
        (What.LANE, "deep/thought", None),
        (What.TENANT, "default", None),
        (What.ALL, None, None),
    ]
    (row,) = await lanes.read(mill.db, [lane_id])
    assert row.is_paused


async def test_a_pause_goes_with_the_batch_s_end(mill):
    worker = await mill.worker()
    done, cancelled, dropped = [await mill.batch(1) for _ in "123"]
    (job,) = await mill.claim(worker, done, 1)
    for batch in (done, cancelled, dropped):
        await control.pause(mill.db, batch_id=batch.id, now=mill.clock())
    await mill.record(worker, mill.answered(job))
    await control.cancel(mill.db, batch_id=cancelled.id, now=mill.clock())
    await batches.discard(mill.db, batch_id=dropped.id)
    assert await state_of(mill, done) is BatchState.COMPLETED
    assert await pauses.listed(mill.db) == []


async def test_what_has_ended_cannot_be_paused(mill):
    batch = await mill.batch(1)
    await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())
    with pytest.raises(NotNow, match="is cancelling"):
        await control.pause(mill.db, batch_id=batch.id, now=mill.clock())
    await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock())
    with pytest.raises(NotNow, match="is cancelled"):
        await control.pause(mill.db, batch_id=batch.id, now=mill.clock())
    assert await pauses.listed(mill.db) == []


async def test_calls_may_be_broken_off_at_once_or_as_an_afterthought(mill):
    at_once, later, worker = await mill.batch(2), await mill.batch(2), await mill.worker()
    for batch in (at_once, later):
        await mill.claim(worker, batch, 1)
    await control.cancel(mill.db, batch_id=at_once.id, abort=True, now=mill.clock())
    assert (await batches.get(mill.db, at_once.id)).aborts_calls
    await control.cancel(mill.db, batch_id=later.id, now=mill.clock())
    assert not (await batches.get(mill.db, later.id)).aborts_calls
    assert await control.cancel(mill.db, batch_id=later.id, abort=True, now=mill.clock())
    assert await control.cancel(mill.db, batch_id=later.id, now=mill.clock())
    assert (await batches.get(mill.db, later.id)).aborts_calls  # it stays asked for
    assert await control.under_way(mill.db, batch_id=later.id) == 1
