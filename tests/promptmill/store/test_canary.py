"""A canary is decided once, when all of it has ended, and its batch goes on or is paused."""

import asyncio
from collections import Counter

import pytest

from promptmill.handling import AfterCanary, Handling
from promptmill.job import State
from promptmill.store import batches, canary, claims, pauses
from promptmill.store.active import active
from promptmill.store.canary import verdict
from promptmill.store.pauses import What


@pytest.mark.parametrize(
    ("counts", "percent", "then", "said"),
    [
        ({State.SUCCEEDED: 50}, 10, AfterCanary.CONTINUE, None),
        ({State.SUCCEEDED: 45, State.FAILED: 5}, 10, AfterCanary.CONTINUE, None),
        ({State.SUCCEEDED: 38, State.FAILED: 12}, 10, AfterCanary.CONTINUE,
         "canary: 12 of 50 failed (24 %), more than 10 %"),
        ({State.SUCCEEDED: 2, State.FAILED: 1}, 0, AfterCanary.ASK, "canary: 1 of 3 failed (33.3 %), more than 0 %"),
        ({State.SUCCEEDED: 1, State.EXPIRED: 1}, 10, AfterCanary.CONTINUE,
         "canary: 1 of 2 failed (50 %), more than 10 %"),
        ({State.SUCCEEDED: 9, State.INVALID: 9}, 10, AfterCanary.CONTINUE, None),
        ({State.SUCCEEDED: 50}, 10, AfterCanary.ASK, "canary: 50 of 50 succeeded; resume to run the rest"),
        ({State.FAILED: 5}, 100, AfterCanary.CONTINUE, None),
        ({}, 10, AfterCanary.CONTINUE, None),
    ],
)  # fmt: skip
def test_the_verdict(counts, percent, then, said):
    assert verdict(Counter(counts), percent=percent, then=then) == said


async def reason(mill, batch) -> str | None:
    found = await pauses.of_batches(mill.db, [batch.id])
    return found[batch.id].reason if batch.id in found else None


async def undecided(mill, batch) -> int | None:
    return (await batches.get(mill.db, batch.id)).canary_until


async def test_only_the_canary_can_be_claimed_until_it_is_decided(mill):
    batch, worker = await mill.batch(10, handling=Handling(canary=3)), await mill.worker()
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    taken = await claims.claim(
        mill.db, worker_id=worker, lane_id=lane_id, shares=[(batch.id, 9)], max_bytes=1 << 20, until={batch.id: 2}
    )
    assert [job.position for job in taken] == [0, 1, 2]
    assert await active(mill.db, now=mill.clock()) == []
    await mill.record(worker, *(mill.answered(job) for job in taken[:2]), mill.retried(taken[2], 60))
    assert await canary.decide(mill.db, now=mill.clock()) == 0  # it waits for its next try
    assert await undecided(mill, batch) == 2


async def test_many_decide_and_one_does(mill):
    handling = Handling(canary=4, canary_percent=20, canary_then=AfterCanary.ASK)
    batch, worker = await mill.batch(10, handling=handling), await mill.worker()
    first, *others = await mill.claim(worker, batch, 4)
    await mill.record(worker, mill.failed(first), *(mill.answered(job) for job in others))
    decided = await asyncio.gather(*(canary.decide(mill.db, now=mill.clock()) for _ in range(5)))
    assert sorted(decided) == [0, 0, 0, 0, 1]
    assert await reason(mill, batch) == "canary: 1 of 4 failed (25 %), more than 20 %"
    assert await undecided(mill, batch) is None
    await pauses.resume(mill.db, What.BATCH, batch.id, now=mill.clock())
    assert await canary.decide(mill.db, now=mill.clock()) == 0
    assert await active(mill.db, now=mill.clock()) != []


async def test_a_batch_that_was_paused_by_hand_says_what_its_canary_found(mill):
    batch, worker = await mill.batch(10, handling=Handling(canary=1)), await mill.worker()
    (job,) = await mill.claim(worker, batch, 1)
    await pauses.pause(mill.db, What.BATCH, batch.id, now=mill.clock())
    await mill.record(worker, mill.failed(job))
    assert await canary.decide(mill.db, now=mill.clock()) == 1
    assert await reason(mill, batch) == "canary: 1 of 1 failed (100 %), more than 10 %"


async def test_what_an_open_batch_begins_with_is_its_canary_where_it_is_less(mill):
    few = await mill.batch(5, handling=Handling(canary=20), is_open=True)
    enough = await mill.batch(5, handling=Handling(canary=2), is_open=True)
    whole = await mill.batch(5, handling=Handling(canary=20))
    ends = [(await batches.get(mill.db, each.id)).canary_until for each in (few, enough, whole)]
    assert ends == [4, 1, None]
