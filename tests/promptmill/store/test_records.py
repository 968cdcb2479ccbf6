"""running → finished, waiting or ready again: fenced, counted, and all in one transaction."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from promptmill.job import BatchState, State
from promptmill.store import batches, results, upkeep, workers
from promptmill.tables import attempts, jobs
from promptmill.tables import results as results_table


async def rows(db, table):
    async with db.read() as connection:
        return (await connection.execute(sa.select(table))).all()


async def test_an_answer_leaves_the_hot_table_and_is_counted(mill):
    batch, worker = await mill.batch(2), await mill.worker()
    first, second = await mill.claim(worker, batch, 2)
    assert await mill.record(worker, mill.answered(first)) == 0
    assert len(await rows(mill.db, jobs)) == 1
    running = await batches.get(mill.db, batch.id)
    assert (running.succeeded, running.state) == (1, BatchState.IN_PROGRESS)
    assert (running.prompt_tokens, running.completion_tokens, running.reasoning_tokens, running.cached_tokens) == (
        10, 5, 3, 2,
    )  # fmt: skip
    await mill.record(worker, mill.failed(second))
    done = await batches.get(mill.db, batch.id)
    assert (done.succeeded, done.failed, done.state, done.finished_at) == (1, 1, BatchState.COMPLETED, mill.clock())
    assert await rows(mill.db, jobs) == []


async def test_results_come_in_input_order_or_as_they_finished(mill):
    batch, worker = await mill.batch(3), await mill.worker()
    claimed = await mill.claim(worker, batch, 3)
    for job in reversed(claimed):
        await mill.record(worker, mill.answered(job, b'{"p":%d}' % job.position))
    by_input = [result async for result in results.stream(mill.db, batch.id)]
    assert [(r.custom_id, r.body, r.line) for r in by_input] == [
        ("c0", b'{"p":0}', 1), ("c1", b'{"p":1}', 2), ("c2", b'{"p":2}', 3),
    ]  # fmt: skip
    finished = [result.position async for result in results.stream(mill.db, batch.id, order="finished")]
    assert finished == [2, 1, 0]


@pytest.mark.parametrize("size", [10, 5_000, 3_000_000])
async def test_a_body_comes_back_byte_for_byte(mill, size):
    batch, worker = await mill.batch(1), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    body = (b'{"nul":"\\u0000","odd":"\\ud800","raw":"\xf0\x9f\x98\x80"}' * (size // 40 + 1))[:size]
    await mill.record(worker, mill.answered(job, body))
    (result,) = [r async for r in results.stream(mill.db, batch.id)]
    assert result.body == body


async def test_a_worker_that_was_taken_for_dead_writes_nothing(mill):
    batch, frozen, other = await mill.batch(1), await mill.worker("frozen"), await mill.worker("other")
    (job,) = await mill.claim(frozen, batch, 1)
    mill.clock.advance(workers.LEASE_SECONDS + 1)
    await workers.heartbeat(mill.db, worker_id=other, in_flight=0, now=mill.clock())
    assert await workers.silent(mill.db, now=mill.clock()) == [frozen]
    assert await workers.reap(mill.db, worker_ids=[frozen], now=mill.clock()) == 1
    (again,) = await mill.claim(other, batch, 1)
    assert again.epoch == job.epoch + 1
    assert await mill.record(frozen, mill.answered(job, b'"late"')) == 1
    assert await mill.record(other, mill.answered(again, b'"right"')) == 0
    assert [r.body async for r in results.stream(mill.db, batch.id)] == [b'"right"']
    assert not await workers.heartbeat(mill.db, worker_id=frozen, in_flight=0, now=mill.clock())
    ledger = {(row.epoch, row.outcome, row.counted) for row in await rows(mill.db, attempts)}
    assert ledger == {(1, "worker_lost", False), (2, "succeeded", True)}


async def test_the_same_worker_with_an_older_claim_writes_nothing(mill):
    batch, worker = await mill.batch(1), await mill.worker()
    (old,) = await mill.claim(worker, batch, 1)
    await mill.record(worker, mill.given_back(old))
    (new,) = await mill.claim(worker, batch, 1)
    assert await mill.record(worker, mill.answered(old, b'"old"')) == 1
    assert await mill.record(worker, mill.answered(new, b'"new"')) == 0
    assert await mill.record(worker, mill.answered(new, b'"twice"')) == 1
    assert [r.body async for r in results.stream(mill.db, batch.id)] == [b'"new"']


async def test_a_retry_waits_counts_and_is_staged_when_due(mill):
    batch, worker = await mill.batch(1), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    await mill.record(worker, mill.retried(job, in_seconds=30))
    assert (await batches.get(mill.db, batch.id)).retried == 1
    assert await mill.claim(worker, batch, 1) == []
    assert await upkeep.stage_due(mill.db, now=mill.clock() + 29) == 0
    assert await upkeep.stage_due(mill.db, now=mill.clock() + 30) == 1
    assert await upkeep.stage_due(mill.db, now=mill.clock() + 30) == 0
    (again,) = await mill.claim(worker, batch, 1)
    assert again.attempts == 1


async def test_giving_back_restores_the_attempt(mill):
    batch, worker = await mill.batch(1), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    await mill.record(worker, mill.given_back(job))
    (again,) = await mill.claim(worker, batch, 1)
    assert (again.attempts, again.epoch) == (0, 2)
    assert (await batches.get(mill.db, batch.id)).retried == 0


async def test_what_is_late_expires_and_closes_the_batch(mill):
    batch, worker = await mill.batch(3, deadline=mill.clock() + 60), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    assert await upkeep.expire(mill.db, now=mill.clock() + 59) == 0
    assert await upkeep.expire(mill.db, now=mill.clock() + 61) == 2
    await mill.record(worker, mill.answered(job))  # it was running: it still made it
    done = await batches.get(mill.db, batch.id)
    assert (done.succeeded, done.expired, done.state) == (1, 2, BatchState.EXPIRED)
    codes = [(r.state, r.error_code) async for r in results.stream(mill.db, batch.id)]
    assert codes == [(State.SUCCEEDED, None), (State.EXPIRED, "batch_expired"), (State.EXPIRED, "batch_expired")]


async def test_headers_come_back_where_there_were_some(mill):
    batch, worker = await mill.batch(2), await mill.worker()
    one, two = await mill.claim(worker, batch, 2)
    headers = {"x-request-id": "r", "x-odd": "\xfc \0"}
    ending = mill.answered(one)
    await mill.record(worker, replace(ending, outcome=replace(ending.outcome, headers=headers)), mill.answered(two))
    found = [result.headers async for result in results.stream(mill.db, batch.id)]
    assert found == [headers, {}]
    async with mill.db.read() as connection:
        kept = await connection.execute(sa.select(results_table.c.headers).order_by(results_table.c.position))
        assert [text is None for text in kept.scalars()] == [False, True]


async def test_a_batch_to_which_jobs_may_be_added_is_not_closed(mill):
    batch, worker = await mill.batch(1, is_open=True), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    await mill.record(worker, mill.answered(job))
    found = await batches.get(mill.db, batch.id)
    assert (found.succeeded, found.total, found.state, found.finished_at) == (1, 1, BatchState.IN_PROGRESS, None)


async def test_expired_jobs_of_a_batch_without_a_deadline_leave_it_complete(mill):
    """Each had a deadline of its own, as single jobs have; the batch had none that it could have missed."""
    batch = await mill.batch(2, is_inbox=True)
    async with mill.db.write() as connection:
        await connection.execute(sa.update(jobs).values(deadline=mill.clock() + 60))
    assert await upkeep.expire(mill.db, now=mill.clock() + 61) == 2
    done = await batches.get(mill.db, batch.id)
    assert (done.expired, done.state) == (2, BatchState.COMPLETED)


async def test_discarding_leaves_nothing(mill):
    batch, worker = await mill.batch(3), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    await mill.record(worker, mill.answered(job))
    await batches.discard(mill.db, batch_id=batch.id)
    from promptmill import tables  # noqa: PLC0415

    for table in (tables.jobs, tables.results, tables.attempts, tables.batches, tables.file_parts, tables.files):
        assert await rows(mill.db, table) == []


async def test_ids_of_finished_jobs_are_never_used_again(mill):
    batch, worker = await mill.batch(2), await mill.worker()
    old = await mill.claim(worker, batch, 2)
    await mill.record(worker, *(mill.answered(job) for job in old))
    new = await mill.claim(worker, await mill.batch(2), 2)
    assert not {job.job_id for job in old} & {job.job_id for job in new}


async def test_one_chore_one_owner(mill):
    take = upkeep.take_lease
    assert await take(mill.db, name="upkeep", owner="a", seconds=10, now=100)
    assert not await take(mill.db, name="upkeep", owner="b", seconds=10, now=105)
    assert await take(mill.db, name="upkeep", owner="b", seconds=10, now=110)


async def lost_in_the_ledger(mill, job, worker: int) -> None:
    """A row for a call that is still out, which no version of promptmill should have left."""
    row = {
        "job_id": job.job_id, "epoch": job.epoch, "batch_id": job.batch_id, "worker_id": worker, "outcome": "earlier",
        "counted": True, "prompt_tokens": 0, "completion_tokens": 0,
    }  # fmt: skip
    async with mill.db.write() as connection:
        await connection.execute(sa.insert(attempts).values(row))


@pytest.mark.parametrize("count", [1, 3])
async def test_a_ledger_that_has_the_call_already_keeps_no_answer_from_being_recorded(mill, count):
    batch, worker = await mill.batch(count), await mill.worker()
    claimed = await mill.claim(worker, batch, count)
    await lost_in_the_ledger(mill, claimed[0], worker)
    assert await mill.record(worker, *(mill.answered(job) for job in claimed)) == 0
    assert (await batches.get(mill.db, batch.id)).succeeded == count
    outcomes = [row.outcome for row in sorted(await rows(mill.db, attempts), key=lambda row: row.job_id)]
    assert outcomes == ["earlier", *["succeeded"] * (count - 1)]


async def test_a_ledger_that_has_the_call_already_keeps_nobody_from_reaping(mill):
    batch, worker = await mill.batch(2), await mill.worker()
    claimed = await mill.claim(worker, batch, 2)
    await lost_in_the_ledger(mill, claimed[0], worker)
    mill.clock.advance(workers.LEASE_SECONDS + 1)
    assert await workers.reap(mill.db, worker_ids=[worker], now=mill.clock()) == 2
    assert {row.state for row in await rows(mill.db, jobs)} == {State.READY}
    assert sorted(row.outcome for row in await rows(mill.db, attempts)) == ["earlier", "worker_lost"]
