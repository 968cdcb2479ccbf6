"""in_progress → cancelling → cancelled."""

from promptmill.job import BatchState, State
from promptmill.store import batches, control, results
from promptmill.store.active import active


async def test_nothing_is_claimed_any_more_and_what_runs_is_kept(mill):
    batch, worker = await mill.batch(5), await mill.worker()
    (running,) = await mill.claim(worker, batch, 1)
    assert await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())
    assert await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())  # as it is already
    assert await active(mill.db, now=mill.clock()) == []
    assert await control.cancelling(mill.db) == [batch.id]
    assert await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock()) == 4
    await mill.record(worker, mill.answered(running))
    done = await batches.get(mill.db, batch.id)
    assert (done.state, done.succeeded, done.cancelled) == (BatchState.CANCELLED, 1, 4)
    outcomes = [(r.state, r.error_code) async for r in results.stream(mill.db, batch.id)]
    assert outcomes == [(State.SUCCEEDED, None), *[(State.CANCELLED, "batch_cancelled")] * 4]


async def test_a_job_that_comes_back_to_a_cancelled_batch_is_cancelled_too(mill):
    batch, worker = await mill.batch(1), await mill.worker()
    (running,) = await mill.claim(worker, batch, 1)
    await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())
    await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock())
    await mill.record(worker, mill.given_back(running))
    await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock())
    done = await batches.get(mill.db, batch.id)
    assert (done.state, done.cancelled) == (BatchState.CANCELLED, 1)


async def test_large_batches_are_cancelled_in_steps(mill):
    batch = await mill.batch(12_000)
    await control.cancel(mill.db, batch_id=batch.id, now=mill.clock())
    assert await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock()) == 12_000
    assert (await batches.get(mill.db, batch.id)).cancelled == 12_000
