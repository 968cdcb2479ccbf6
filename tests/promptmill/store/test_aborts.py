"""Calls that somebody wants broken off: until the batch, or the job, has ended."""

import pytest
import sqlalchemy as sa

from promptmill.job import State
from promptmill.store import aborts, control, results, workers
from promptmill.store.aborts import Aborting, aborting
from promptmill.tables import aborts as abort_rows


async def remembered(mill) -> int:
    async with mill.db.read() as connection:
        return (await connection.execute(sa.select(sa.func.count()).select_from(abort_rows))).scalar()


async def ends(mill, batch) -> list[tuple[State, str | None]]:
    return [(each.state, each.error_code) async for each in results.stream(mill.db, batch.id)]


async def test_of_batches_where_that_was_asked_and_until_they_have_ended(mill):
    kept, aborted, ended = [await mill.batch(2) for _ in range(3)]
    worker = await mill.worker()
    for batch in (kept, aborted):
        await mill.claim(worker, batch, 1)
    for batch in (kept, aborted, ended):
        await control.cancel(mill.db, batch_id=batch.id, abort=batch is not kept, now=mill.clock())
        await control.finish_cancelling(mill.db, batch_id=batch.id, now=mill.clock())
    assert await aborting(mill.db) == Aborting(frozenset({aborted.id}))


async def test_of_a_job_that_is_out_only(mill):
    batch, worker = await mill.batch(2), await mill.worker()
    (running,) = await mill.claim(worker, batch, 1)
    for _ in range(2):  # asking twice is asking once
        assert await aborts.ask(mill.db, (batch.id, 0), now=mill.clock())
    for position in (1, 2):
        assert not await aborts.ask(mill.db, (batch.id, position), now=mill.clock())
    assert await aborting(mill.db) == Aborting(job_ids=frozenset({running.job_id}))
    await aborts.carry_out(mill.db, now=mill.clock())
    assert await aborting(mill.db)  # it is still out


@pytest.mark.parametrize("how", ["given_back", "waiting", "dead"])
async def test_a_job_that_comes_back_is_cancelled(mill, how):
    batch, worker = await mill.batch(1), await mill.worker()
    (running,) = await mill.claim(worker, batch, 1)
    await aborts.ask(mill.db, (batch.id, 0), now=mill.clock())
    if how == "given_back":
        await mill.record(worker, mill.given_back(running))
    elif how == "waiting":
        await mill.record(worker, mill.retried(running, 60.0))
    else:
        mill.clock.advance(60)
        assert await workers.reap(mill.db, worker_ids=[worker], now=mill.clock()) == 1
    await aborts.carry_out(mill.db, now=mill.clock())
    assert await ends(mill, batch) == [(State.CANCELLED, "job_cancelled")]
    assert await remembered(mill) == 0


async def test_an_answer_that_was_there_first_is_kept(mill):
    batch, worker = await mill.batch(1), await mill.worker()
    (running,) = await mill.claim(worker, batch, 1)
    await aborts.ask(mill.db, (batch.id, 0), now=mill.clock())
    await mill.record(worker, mill.answered(running))
    await aborts.carry_out(mill.db, now=mill.clock())
    assert await ends(mill, batch) == [(State.SUCCEEDED, None)]
    assert await remembered(mill) == 0
