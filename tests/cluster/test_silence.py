"""When silence is taken for death: only where somebody could have listened."""

import pytest
import sqlalchemy as sa

from promptmill.store import claims, workers
from promptmill.store.claims import Claimed
from promptmill.tables import jobs
from promptmill.tables import workers as worker_rows
from tests.worker.workshop import Workshop, chats, workshop
from worker.upkeep import UNWATCHED_SECONDS, Upkeep


@pytest.fixture
def shop(db, clock) -> Workshop:
    made = workshop(db, "http://nobody.invalid/v1")
    made.clock = clock
    return made


async def claimed(shop: Workshop, worker_id: int) -> list[Claimed]:
    """A batch of three jobs, in this worker's hands."""
    batch = await shop.batch(chats(3))
    async with shop.db.read() as connection:
        lane_id = (await connection.execute(sa.select(jobs.c.lane_id).limit(1))).scalar_one()
    return await claims.claim(shop.db, worker_id=worker_id, lane_id=lane_id, shares=[(batch.id, 3)], max_bytes=1 << 20)


async def in_hands(shop: Workshop, worker_id: int) -> int:
    """Jobs that this worker has."""
    async with shop.db.read() as connection:
        statement = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.worker_id == worker_id)
        return int((await connection.execute(statement)).scalar_one())


async def look(shop: Workshop, seconds: float, *, beating: int | None = None) -> None:
    """Let time pass, with somebody looking now and then, as drains and the clock do; one worker may be alive."""
    upkeep = Upkeep(shop.db, clock=shop.clock, owner="somebody")
    end = shop.clock() + seconds
    while shop.clock() < end:
        shop.clock.advance(min(2.0, end - shop.clock()))
        if beating is not None:
            await workers.heartbeat(shop.db, worker_id=beating, in_flight=3, now=shop.clock())
        await upkeep.do_all()


async def test_who_is_silent_for_a_lease_loses_its_jobs(shop):
    worker_id = await workers.register(shop.db, name="w", now=shop.clock())
    await claimed(shop, worker_id)
    await look(shop, workers.LEASE_SECONDS)
    assert await in_hands(shop, worker_id) == 3
    await look(shop, 2.0)
    assert await in_hands(shop, worker_id) == 0


async def test_after_a_time_in_which_nobody_could_listen_the_living_speak_first(shop):
    worker_id = await workers.register(shop.db, name="w", now=shop.clock())
    await claimed(shop, worker_id)
    await look(shop, 10, beating=worker_id)
    shop.clock.advance(600)  # the database is away, or the machine asleep
    await look(shop, 4.0)  # others are back first
    assert await in_hands(shop, worker_id) == 3
    await look(shop, 60, beating=worker_id)
    assert await in_hands(shop, worker_id) == 3


async def test_who_is_silent_even_then_loses_its_jobs(shop):
    worker_id = await workers.register(shop.db, name="w", now=shop.clock())
    await claimed(shop, worker_id)
    await look(shop, 4)
    shop.clock.advance(UNWATCHED_SECONDS + 600)
    await look(shop, workers.LEASE_SECONDS)
    assert await in_hands(shop, worker_id) == 0


async def test_what_a_worker_claims_after_it_was_taken_for_dead_is_not_stranded(shop):
    worker_id = await workers.register(shop.db, name="w", now=shop.clock())
    await look(shop, workers.LEASE_SECONDS + 2)
    async with shop.db.read() as connection:
        assert (await connection.execute(sa.select(worker_rows.c.stopped_at))).scalar_one() is not None
    assert len(await claimed(shop, worker_id)) == 3  # it does not know yet, and then dies
    await look(shop, workers.LEASE_SECONDS + 2)
    assert await in_hands(shop, worker_id) == 0
    async with shop.db.read() as connection:
        assert (await connection.execute(sa.select(worker_rows.c.stopped_at))).scalar_one() is not None
