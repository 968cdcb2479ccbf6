"""The ledger's sums grow with the ledger, in the transaction that writes it."""

import asyncio
from collections import Counter

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.store import batches, records, sums, upkeep, workers
from promptmill.store.sums import BEYOND_SECONDS, LATENCY_BOUNDS_SECONDS, CallMade, OutcomeSum, Progress
from promptmill.tables import attempts


async def test_every_row_of_the_ledger_is_counted_once(mill):
    batch, worker = await mill.batch(5), await mill.worker()
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    one, two, three, four, _ = await mill.claim(worker, batch, 5)
    await mill.record(worker, mill.answered(one), mill.failed(two), mill.retried(three, 30))
    await mill.record(worker, mill.answered(four), mill.answered(one))  # the second ending of one is dropped
    assert await sums.outcomes(mill.db) == [
        OutcomeSum(lane_id, "rejected", 1, 1.0, 0, 0),
        OutcomeSum(lane_id, "server_error", 1, 1.0, 0, 0),
        OutcomeSum(lane_id, "succeeded", 2, 3.0, 20, 10),
    ]
    latencies = await sums.latencies(mill.db)
    assert latencies.keys() == {lane_id}
    assert tuple(latencies[lane_id]) == LATENCY_BOUNDS_SECONDS
    assert {bound: calls for bound, calls in latencies[lane_id].items() if calls} == {2.5: 2}  # only answers


async def test_what_a_lane_does_is_summed_up_by_time_and_forgotten_after_a_day(mill):
    batch, worker = await mill.batch(5), await mill.worker()
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    one, two, three, four, five = await mill.claim(worker, batch, 5)
    first = int(mill.clock() // sums.BUCKET_SECONDS)
    await mill.record(worker, mill.answered(one), mill.failed(two), mill.retried(three, 30), mill.given_back(five))
    mill.clock.advance(sums.BUCKET_SECONDS)
    await mill.record(worker, mill.answered(four))
    both = [Progress(lane_id, first, 2, 1, 1.5), Progress(lane_id, first + 1, 1, 1, 1.5)]
    assert await sums.progress(mill.db, [lane_id], since_bucket=0) == both
    assert await sums.progress(mill.db, [lane_id], since_bucket=first + 1) == both[1:]
    assert await sums.progress(mill.db, [lane_id + 1], since_bucket=0) == []
    await upkeep.purge(mill.db, now=mill.clock() + 86_400)
    assert await sums.progress(mill.db, [lane_id], since_bucket=0) == both[1:]


async def test_calls_of_a_dead_worker_are_counted_when_it_is_found(mill):
    batch, worker = await mill.batch(3), await mill.worker()
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    await mill.claim(worker, batch, 3)
    mill.clock.advance(workers.LEASE_SECONDS + 1)
    assert await workers.reap(mill.db, worker_ids=[worker], now=mill.clock()) == 3
    assert await sums.outcomes(mill.db) == [OutcomeSum(lane_id, "worker_lost", 3, 0.0, 0, 0)]


async def test_what_was_never_sent_is_no_call(mill):
    batch, worker = await mill.batch(1), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    never_sent = mill.failed(job)
    object.__setattr__(never_sent, "started_at", None)
    await mill.record(worker, never_sent)
    assert await sums.outcomes(mill.db) == []


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [(-3.0, 0.1), (0.0, 0.1), (0.1, 0.1), (0.11, 0.25), (3600.0, 3600.0), (3600.1, BEYOND_SECONDS)],
)
async def test_a_call_counts_at_the_first_bound_that_it_does_not_exceed(sqlite_db, seconds, bound):
    async with sqlite_db.write() as connection:
        await sums.add(sqlite_db, connection, [CallMade(1, "succeeded", True, seconds)])
    found = (await sums.latencies(sqlite_db))[1]
    assert [each for each, calls in found.items() if calls] == [bound]
    (total,) = await sums.outcomes(sqlite_db)
    assert total.seconds == max(0.0, seconds)


async def test_workers_that_write_at_once_neither_wait_in_a_ring_nor_lose_a_count(mill):
    """Batches and lanes in opposite orders; each worker's endings go in one transaction."""
    made = [await mill.batch(40, model=f"m{n}") for n in range(4)]
    hands = [await mill.worker(f"w{n}") for n in range(4)]
    claimed = {worker: [job for batch in made for job in await mill.claim(worker, batch, 10)] for worker in hands}

    async def write(worker: int, backwards: bool) -> None:
        ours = list(reversed(claimed[worker])) if backwards else claimed[worker]
        for start in range(5):
            assert await mill.record(worker, *(mill.answered(job) for job in ours[start::5])) == 0

    async with asyncio.timeout(60):
        await asyncio.gather(*(write(worker, n % 2 == 0) for n, worker in enumerate(hands)))
    assert [(total.outcome, total.calls) for total in await sums.outcomes(mill.db)] == [("succeeded", 40)] * 4
    for batch in made:
        done = await batches.get(mill.db, batch.id)
        assert (done.succeeded, done.state.value) == (40, "completed")
    async with mill.db.read() as connection:
        outcomes = (await connection.execute(sa.select(attempts.c.outcome))).scalars()
        assert Counter(outcomes) == {"succeeded": 160}


async def test_results_of_a_batch_get_their_ids_in_the_order_of_the_commits(postgres_db_url, clock):
    """The second writer has to wait for the first one's commit, so whoever reads up to an id misses nothing below."""
    from tests.promptmill.store.conftest import Mill  # noqa: PLC0415

    db = Database(postgres_db_url)
    mill = Mill(db, clock)
    batch = await mill.batch(2)
    first, second = await mill.worker("a"), await mill.worker("b")
    (one,), (two,) = await mill.claim(first, batch, 1), await mill.claim(second, batch, 1)
    inserting, go_on = asyncio.Event(), asyncio.Event()
    insert = db.insert

    async def insert_slowly(connection, table, columns, rows) -> None:
        await insert(connection, table, columns, rows)
        if table.name.endswith("results") and not inserting.is_set():
            inserting.set()
            await go_on.wait()

    db.insert = insert_slowly
    earlier = asyncio.create_task(mill.record(first, mill.answered(one)))
    await inserting.wait()
    later = asyncio.create_task(mill.record(second, mill.answered(two)))
    done, _ = await asyncio.wait({later}, timeout=0.3)
    assert not done
    go_on.set()
    await asyncio.gather(earlier, later)
    await db.aclose()


async def test_a_tally_is_added_now_and_then_and_nothing_of_it_is_lost(mill):
    batch, worker = await mill.batch(4), await mill.worker()
    tally = sums.Tally(added_at=mill.clock())
    one, two, three, _ = await mill.claim(worker, batch, 4)

    async def record(*endings) -> None:
        await records.record(mill.db, worker_id=worker, endings=endings, now=mill.clock(), tally=tally)

    async def counted() -> int:
        return sum(total.calls for total in await sums.outcomes(mill.db))

    await record(mill.answered(one))
    assert await counted() == 0
    mill.clock.advance(sums.ADD_SECONDS)
    await record(mill.answered(two))
    assert await counted() == 2
    await record(mill.answered(three), mill.answered(one))  # the second ending of one is dropped
    await record(mill.answered(three))  # nothing is left to write, and what waits is kept
    assert await counted() == 2
    await records.add_tally(mill.db, tally, now=mill.clock())
    await records.add_tally(mill.db, tally, now=mill.clock())
    assert await counted() == 3
