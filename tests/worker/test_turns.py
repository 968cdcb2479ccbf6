"""Whose turn it is, seen at the endpoint: the laws of fairness hold for real calls on a lane that is full."""

import asyncio
import random
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from promptmill.contenders import FLOOR
from promptmill.handling import Handling
from promptmill.priority import BACKGROUND, HIGH
from promptmill.tables import batches as batch_rows
from promptmill.tables import tenants as tenant_rows
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint, text_of
from tests.worker.workshop import chats, workshop

#: Each batch says numbers of its own.
EACH = 10_000


class Turns:
    """Answers in their time, and keeps whose calls came, in their order."""

    def __init__(self, seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        self.seconds = seconds
        self.came: list[int] = []
        self._dice = random.Random(5)  # noqa: S311 - waits, not secrets

    async def __call__(self, call) -> bytes:
        self.came.append(int(text_of(call)) // EACH)
        await asyncio.sleep(self._dice.uniform(*self.seconds))
        return chat(prompt_tokens=10, completion_tokens=10)

    def between(self, start: int, end: int) -> Counter[int]:
        return Counter(self.came[start:end])


async def tenants(db, *weights: float) -> list[int]:
    made = []
    async with db.write() as connection:
        for number, weight in enumerate(weights):
            new = sa.insert(tenant_rows).values(name=f"tenant {number}", created_at=1.0, weight=weight)
            made.append((await connection.execute(new.returning(tenant_rows.c.id))).scalar_one())
    return made


@pytest.mark.parametrize(
    ("limits", "seconds"),
    # What is shared has to be what is scarce, also where other tests take the machine's time.
    [({"max_in_flight": 12}, (0.01, 0.03)), ({"requests_per_minute": 9_000}, (0.0, 0.01))],
    ids=["places", "requests"],
)
async def test_three_tenants_get_their_weights_of_a_full_lane(sqlite_db, limits, seconds):
    turns, (start, end) = Turns(seconds), (120, 720)
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, **limits)
        for number, tenant_id in enumerate(await tenants(sqlite_db, 1, 2, 3)):
            await shop.batch(chats(600, first=number * EACH), tenant_id=tenant_id)
        async with shop.serving():
            await eventually(lambda: len(turns.came) >= end)
    got = turns.between(start, end)
    for number, weight in enumerate((1, 2, 3)):
        assert got[number] / (end - start) == pytest.approx(weight / 6, rel=0.05)


async def test_batches_of_a_tenant_share_by_weight(sqlite_db):
    turns = Turns((0.01, 0.02))
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=8)
        for number, weight in enumerate((1, 3)):
            await shop.batch(chats(500, first=number * EACH), handling=Handling(weight=weight))
        async with shop.serving():
            await eventually(lambda: len(turns.came) >= 480)
    got = turns.between(80, 480)
    assert got[1] / got[0] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [({"max_in_flight": 12}, (0.01, 0.03)), ({"requests_per_minute": 12_000}, (0.0, 0.01))],
    ids=["places", "requests"],
)
async def test_a_class_goes_first_whatever_the_models_of_the_limit(sqlite_db, limits, seconds):
    turns = Turns(seconds)
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, **limits)
        await shop.batch(chats(400, model="a", first=EACH), priority=BACKGROUND)
        await shop.batch(chats(600, model="b"), priority=HIGH)
        async with shop.serving():
            await eventually(lambda: len(turns.came) >= 500)
    got = turns.between(100, 500)
    assert FLOOR * 400 * 0.8 <= got[1] <= 3 * FLOOR * 400


async def test_models_of_one_limit_share_by_the_weights_of_their_tenants(sqlite_db):
    """And who has jobs on both is no more than one."""
    turns = Turns((0.0, 0.01))
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, requests_per_minute=12_000)
        one, three = await tenants(sqlite_db, 1, 3)
        await shop.batch(chats(300, model="a"), tenant_id=one)
        both = [line for pair in zip(chats(400, model="a", first=EACH), chats(400, model="b", first=EACH), strict=True)
                for line in pair]  # fmt: skip
        await shop.batch(both, tenant_id=three)
        async with shop.serving():
            await eventually(lambda: len(turns.came) >= 600)
    got = turns.between(100, 600)
    assert got[1] / got[0] == pytest.approx(3, rel=0.1)


async def test_background_work_gets_its_floor_and_no_more(sqlite_db):
    turns = Turns((0.005, 0.015))
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=10)
        await shop.batch(chats(1_200))
        await shop.batch(chats(200, first=EACH), priority=BACKGROUND)
        async with shop.serving():
            await eventually(lambda: len(turns.came) >= 800)
    share = turns.between(50, 800)[1] / 750
    assert share >= FLOOR * 0.9
    assert share <= 3 * FLOOR


async def test_ten_of_another_tenant_are_not_behind_thousands(sqlite_db):
    turns = Turns((0.2, 0.4))
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=40)
        one, other = await tenants(sqlite_db, 1, 1)
        async with shop.serving() as drain:

            async def seconds_for_ten(first: int) -> float:
                began = time.monotonic()
                batch = await shop.batch(chats(10, first=first), tenant_id=other)
                drain.wake()

                async def is_done() -> bool:
                    return (await shop.now(batch)).succeeded == 10

                await eventually(is_done)
                return time.monotonic() - began

            await seconds_for_ten(0)  # the lane is known to be good
            alone = await seconds_for_ten(EACH)
            await shop.batch(chats(2_000, first=2 * EACH), tenant_id=one)
            await eventually(lambda: turns.came.count(2) >= 80)
            beside = await seconds_for_ten(3 * EACH)
    assert beside <= 2 * alone


@pytest.mark.parametrize("model", ["m", "another"])
async def test_a_deadline_at_risk_goes_first(sqlite_db, model):
    """200 calls at 100 a second, and 3 s for them: with half of the limit they would be late."""
    turns = Turns()
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, requests_per_minute=6_000)
        one, other = await tenants(sqlite_db, 1, 1)
        await shop.batch(chats(1_000), tenant_id=one)
        dated = await shop.batch(chats(200, model=model, first=EACH), tenant_id=other, deadline=time.time() + 3.0)
        async with shop.serving():

            async def is_done() -> bool:
                return (await shop.now(dated)).finished_at is not None

            await eventually(is_done)
            assert (await shop.now(dated)).succeeded == 200
            assert turns.came.count(0) < 160


async def test_a_new_priority_acts_on_what_runs(sqlite_db):
    turns = Turns((0.01, 0.02))
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=8)
        for number in (0, 1):
            batch = await shop.batch(chats(1_000, first=number * EACH))
        async with shop.serving():
            await eventually(lambda: len(turns.came) >= 50)
            async with sqlite_db.write() as connection:
                later = sa.update(batch_rows).where(batch_rows.c.id == batch.id)
                await connection.execute(later.values(priority=HIGH))
            await asyncio.sleep(0.7)  # within a look
            changed = len(turns.came)
            await eventually(lambda: len(turns.came) >= changed + 200)
    assert turns.between(changed, changed + 200)[1] >= 190


async def test_the_models_of_a_batch_go_on_side_by_side(sqlite_db):
    """Where permits come one by one, too: in the proportion in which there is work."""
    turns = Turns((0.0, 0.01))
    async with endpoint(turns) as upstream:
        shop = workshop(sqlite_db, upstream.url, requests_per_minute=9_000)
        few = chats(150, model="a")
        many = chats(300, model="b", first=EACH)
        await shop.batch([*few, *many])
        async with shop.serving():
            await eventually(lambda: len(turns.came) == 450)
    assert turns.between(60, 240)[0] == pytest.approx(60, abs=12)
    assert turns.between(240, 420)[0] == pytest.approx(60, abs=12)
