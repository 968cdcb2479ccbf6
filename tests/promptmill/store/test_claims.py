"""ready → running."""

import asyncio

import pytest

from promptmill.store import batches, control, pauses
from promptmill.store.active import active
from promptmill.store.batches import NewBatch
from promptmill.store.pauses import EVERYTHING, What


async def test_a_claim_takes_the_lowest_positions_and_brings_the_lines_along(mill):
    batch, worker = await mill.batch(5), await mill.worker()
    claimed = await mill.claim(worker, batch, 3)
    assert [job.position for job in claimed] == [0, 1, 2]
    assert [job.line for job in claimed] == [b'{"n":0}\n', b'{"n":1}\n', b'{"n":2}\n']
    assert {job.epoch for job in claimed} == {1}
    assert {job.form for job in claimed} == {"bare"}


async def test_nobody_claims_what_is_claimed(mill):
    batch, one, two = await mill.batch(4), await mill.worker("a"), await mill.worker("b")
    assert len(await mill.claim(one, batch, 3)) == 3
    assert [job.position for job in await mill.claim(two, batch, 3)] == [3]
    assert await mill.claim(two, batch, 3) == []


async def test_workers_that_claim_at_once_get_different_jobs(mill):
    batch = await mill.batch(400)
    ids = [await mill.worker(str(i)) for i in range(8)]
    claims = await asyncio.gather(*(mill.claim(worker, batch, 50) for worker in ids))
    again = await asyncio.gather(*(mill.claim(worker, batch, 50) for worker in ids))
    taken = [job.job_id for jobs in (*claims, *again) for job in jobs]
    assert sorted(taken) == sorted(set(taken))
    assert len(taken) == 400


async def test_a_claim_stops_at_the_byte_budget_but_takes_one_giant(mill):
    batch, worker = await mill.batch(10, bytes_each=1_000), await mill.worker()
    assert len(await mill.claim(worker, batch, 10, max_bytes=3_500)) == 3
    assert len(await mill.claim(worker, batch, 10, max_bytes=10)) == 1


async def test_a_batch_that_is_not_open_is_not_active(mill):
    open_ = await mill.batch(1)
    await batches.create(mill.db, NewBatch(file_id=1, source="x", defaults="{}"), now=mill.clock())
    assert [each.batch_id for each in await active(mill.db, now=mill.clock())] == [open_.id]
    assert await active(mill.db, now=mill.clock(), only=[999]) == []


@pytest.mark.parametrize("what", [What.BATCH, What.LANE, What.TENANT, What.ALL, None], ids=str)
async def test_a_claim_that_was_decided_before_an_order_takes_nothing_after_it(mill, what):
    """The drain looked, and then somebody paused or cancelled."""
    batch, other, worker = await mill.batch(4), await mill.batch(1, model="other"), await mill.worker()
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    assert len(await mill.claim(worker, batch, 1)) == 1
    if what is None:
        await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())
    else:
        ids = {What.BATCH: batch.id, What.LANE: lane_id, What.TENANT: batch.tenant_id, What.ALL: EVERYTHING}
        await pauses.pause(mill.db, what, ids[what], now=mill.clock())
    assert await mill.claim(worker, batch, 1) == []
    assert len(await mill.claim(worker, other, 1)) == (what in (What.BATCH, What.LANE, None))
    if what is not None:
        await pauses.resume(mill.db, what, ids[what], now=mill.clock())
        assert len(await mill.claim(worker, batch, 4)) == 3
