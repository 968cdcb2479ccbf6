"""Who is working, and examples of what failed."""

from promptmill.store import overview, workers


async def test_workers_that_have_not_stopped(mill):
    one, two, three = [await mill.worker(name) for name in ("one", "two", "three")]
    await workers.stopped(mill.db, worker_id=two, now=mill.clock())
    started = mill.clock()
    mill.clock.advance(5)
    await workers.heartbeat(mill.db, worker_id=three, in_flight=7, now=mill.clock())
    rows = await overview.working(mill.db)
    assert [(row.id, row.name, row.in_flight) for row in rows] == [(one, "one", 0), (three, "three", 7)]
    assert (rows[1].started_at, rows[1].heartbeat_at) == (started, started + 5)


async def test_examples_are_the_first_ones_of_their_reason(mill):
    batch, worker = await mill.batch(5), await mill.worker()
    jobs = await mill.claim(worker, batch, 5)
    await mill.record(worker, mill.answered(jobs[0]), *(mill.failed(job) for job in reversed(jobs[1:])))
    assert await overview.examples(mill.db, batch.id, "rejected", limit=3) == ["c1", "c2", "c3"]
    assert await overview.examples(mill.db, batch.id, "dns_failed", limit=3) == []
