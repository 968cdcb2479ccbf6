"""ready → running."""

import asyncio


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
    from promptmill.store import batches  # noqa: PLC0415
    from promptmill.store.active import active  # noqa: PLC0415
    from promptmill.store.batches import NewBatch  # noqa: PLC0415

    open_ = await mill.batch(1)
    await batches.create(mill.db, NewBatch(file_id=1, source="x", defaults="{}"), now=mill.clock())
    assert [each.batch_id for each in await active(mill.db, now=mill.clock())] == [open_.id]
    assert await active(mill.db, now=mill.clock(), only=[999]) == []
