"""What a drain sees when it looks: which batches may be claimed from, and all that decides whose turn it is."""

import pytest
import sqlalchemy as sa

from promptmill.handling import Handling
from promptmill.limits import Limits
from promptmill.store import batches, pauses
from promptmill.store.active import Active, active
from promptmill.store.pauses import EVERYTHING, What
from promptmill.tables import batch_lanes, tenants


async def one(mill) -> Active:
    (found,) = await active(mill.db, now=mill.clock())
    return found


async def test_a_batch_comes_with_its_terms_and_those_of_its_tenant(mill):
    handling = Handling(weight=2.5, max_in_flight=3, budget_tokens=100, canary=2)
    batch = await mill.batch(5, priority=7, deadline=mill.clock() + 60, handling=handling)
    async with mill.db.write() as connection:
        await connection.execute(sa.update(tenants).values(weight=4, tokens_per_minute=1_000))
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    assert await one(mill) == Active(
        batch.id, lane_id, 7, mill.clock() + 60, 1, 2.5, 4.0, Limits(max_in_flight=3), Limits(tokens_per_minute=1_000),
        remaining=5, at_most=5, waiting_since=mill.clock(), canary_until=1, has_budget=True,
    )  # fmt: skip


async def test_without_terms_there_are_no_limits(mill):
    await mill.batch(1)
    found = await one(mill)
    assert found.limits.is_unlimited
    assert found.tenant_limits.is_unlimited
    assert (found.weight, found.tenant_weight, found.has_budget) == (1.0, 1.0, False)


async def test_what_remains_on_a_lane_is_guessed_by_its_part_of_the_batch(mill):
    batch, worker = await mill.batch(8), await mill.worker()
    await mill.record(worker, *(mill.answered(job) for job in await mill.claim(worker, batch, 3)))
    assert ((await one(mill)).remaining, (await one(mill)).at_most) == (5, 5)
    async with mill.db.write() as connection:  # as if as many again were on another lane
        await connection.execute(sa.update(batch_lanes).values(total=4))
    assert ((await one(mill)).remaining, (await one(mill)).at_most) == (3, 4)


@pytest.mark.parametrize("what", list(What))
async def test_what_is_paused_is_not_seen(mill, what):
    batch = await mill.batch(1)
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    number = {What.BATCH: batch.id, What.LANE: lane_id, What.TENANT: batch.tenant_id, What.ALL: EVERYTHING}[what]
    await pauses.pause(mill.db, what, number + 1, now=mill.clock())
    assert bool(await active(mill.db, now=mill.clock())) == (what is not What.ALL)
    await pauses.pause(mill.db, what, number, now=mill.clock())
    assert await active(mill.db, now=mill.clock()) == []
    await pauses.resume(mill.db, what, number, now=mill.clock())
    await pauses.resume(mill.db, what, number + 1, now=mill.clock())
    assert await active(mill.db, now=mill.clock()) != []


async def test_a_batch_whose_time_has_not_come_is_not_seen(mill):
    await mill.batch(1, handling=Handling(not_before=mill.clock() + 5))
    assert await active(mill.db, now=mill.clock()) == []
    assert await active(mill.db, now=mill.clock() + 5) != []
