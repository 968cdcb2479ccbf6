"""A claim takes no more jobs of a batch than its budget has room for."""

import asyncio

import pytest

from promptmill.foresight import Price
from promptmill.handling import Handling
from promptmill.store import batches, claims, pauses
from promptmill.store.budgets import Expected


#: Each job has a prompt of 10 tokens (`Mill.batch`), and brings 15 with its answer (`Mill.answered`).
async def claim(mill, worker, batch, count, *, answer_tokens=5.0, price: Price | None = None) -> list[claims.Claimed]:
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    return await claims.claim(
        mill.db, worker_id=worker, lane_id=lane_id, shares=[(batch.id, count)], max_bytes=1 << 20,
        expected={batch.id: Expected(answer_tokens, price)}, now=mill.clock(),
    )  # fmt: skip


async def reason(mill, batch) -> str | None:
    found = await pauses.of_batches(mill.db, [batch.id])
    return found[batch.id].reason if batch.id in found else None


async def test_what_is_out_is_reserved_and_what_is_spent_counts(mill):
    batch, worker = await mill.batch(20, handling=Handling(budget_tokens=100)), await mill.worker()
    six = await claim(mill, worker, batch, 20)
    assert len(six) == 6  # 15 each
    assert await claim(mill, worker, batch, 20) == []
    assert await reason(mill, batch) is None  # calls are out: they may take less than was thought
    await mill.record(worker, *(mill.answered(job) for job in six[:5]), mill.given_back(six[5]))
    (one,) = await claim(mill, worker, batch, 20)
    await mill.record(worker, mill.answered(one))
    assert await claim(mill, worker, batch, 20) == []
    assert await reason(mill, batch) == "budget: 90 tokens spent of 100; one more call may take 15"


async def test_workers_side_by_side_do_not_spend_the_same_rest(mill):
    batch = await mill.batch(40, handling=Handling(budget_tokens=150))
    ids = [await mill.worker(f"w{n}") for n in range(4)]
    taken = await asyncio.gather(*(claim(mill, worker, batch, 10) for worker in ids))
    assert sum(map(len, taken)) == 10


@pytest.mark.parametrize(
    ("price", "count", "said"),
    [
        (Price(100_000.0, 0.0), 3, None),  # a prompt costs 1.00
        (Price(100_000.0, 100_000.0), 2, None),
        (Price(1_000_000.0, 0.0), 0, "budget: 0.00 spent of 3.00; one more call may cost 10.00"),
        (None, 0, "budget: its cost cannot be counted, since one of its models has no price; set [[price]]"),
    ],
)
async def test_a_budget_of_money(mill, price, count, said):
    batch, worker = await mill.batch(9, handling=Handling(budget_cost=3.0)), await mill.worker()
    assert len(await claim(mill, worker, batch, 9, price=price)) == count
    assert await reason(mill, batch) == said
