"""Caps of batches and tenants: kept, by all workers together, without holding up anybody else."""

import asyncio
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from promptmill.handling import Handling
from promptmill.limits import Limits
from promptmill.store.active import Active
from promptmill.tables import batches as batch_rows
from promptmill.tables import tenants as tenant_rows
from tests.conftest import Clock, eventually
from tests.worker.endpoint import chat, endpoint, text_of
from tests.worker.workshop import chats, workshop
from worker.caps import Caps
from worker.limits.memory import MemoryLimiter
from worker.probe import HANDFUL


class AtOnce:
    """Answers after a moment, and sees how many calls of each hundred are there at once."""

    def __init__(self, seconds: float = 0.02, full: int = 0) -> None:
        self.seconds = seconds
        self.full = full  # answer all but the first few only when so many are there
        self.is_full = asyncio.Event()
        self.now: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()
        self.came: list[int] = []

    async def __call__(self, call) -> bytes:
        which = int(text_of(call)) // 100
        self.came.append(which)
        self.now[which] += 1
        self.peak[which] = max(self.peak[which], self.now[which])
        if sum(self.now.values()) >= self.full:
            self.is_full.set()
        try:
            if len(self.came) > HANDFUL:
                await self.is_full.wait()
            await asyncio.sleep(self.seconds)
        finally:
            self.now[which] -= 1
        return chat()


async def change(db, table, id_, **values) -> None:
    async with db.write() as connection:
        await connection.execute(sa.update(table).where(table.c.id == id_).values(**values))


async def new_tenant(db, name: str, **values) -> int:
    async with db.write() as connection:
        made = sa.insert(tenant_rows).values(name=name, created_at=1.0, **values).returning(tenant_rows.c.id)
        return (await connection.execute(made)).scalar_one()


async def test_a_batch_with_a_cap_keeps_it_and_the_others_use_the_rest(db):
    answers = AtOnce(full=20)
    async with endpoint(answers) as upstream:
        shop = workshop(db, upstream.url, max_in_flight=20)
        capped = await shop.batch(chats(60), handling=Handling(max_in_flight=3))
        free = await shop.batch(chats(100, first=100))
        async with shop.serving() as drain:
            await eventually(lambda: drain.counts.succeeded == 160)
    assert (answers.peak[0], answers.peak[1]) == (3, 17)
    assert answers.came.index(1) < 20  # nobody waited for the other
    assert [(await shop.now(each)).state.value for each in (capped, free)] == ["completed"] * 2


async def test_a_tenants_cap_holds_for_all_of_its_batches_and_lanes_and_is_shared_fairly(sqlite_db):
    answers = AtOnce()
    tenant = await new_tenant(sqlite_db, "small", max_in_flight=4)
    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        for first, model in ((0, "m"), (100, "m"), (200, "other")):
            await shop.batch(chats(40, first=first, model=model), tenant_id=tenant)
        total_peak = 0
        async with shop.serving() as drain:
            while drain.counts.succeeded < 120:
                total_peak = max(total_peak, sum(answers.now.values()))
                await asyncio.sleep(0.005)
    assert total_peak == 4
    halfway = Counter(answers.came[20:80])
    assert halfway[0] == pytest.approx(halfway[1], rel=0.4)
    assert halfway[2] > 5


async def test_a_rate_of_a_batch_is_kept_and_the_drain_does_not_ask_all_the_time(sqlite_db, monkeypatch):
    asked = 0
    acquire = MemoryLimiter.acquire

    async def counting(self, *args, **kwargs):
        nonlocal asked
        asked += 1
        return await acquire(self, *args, **kwargs)

    monkeypatch.setattr(MemoryLimiter, "acquire", counting)
    async with endpoint(AtOnce(0.0)) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(15), handling=Handling(requests_per_minute=600))
        began = time.monotonic()
        await shop.work(batch)
        seconds = time.monotonic() - began
    assert 1.2 < seconds < 10.0  # 15 calls at 10 a second
    assert asked < 30 * seconds


async def test_a_rate_of_tokens_counts_what_answers_take(sqlite_db):
    """The first calls reserve 256 tokens for their answers, which take 10: the difference is given back."""
    async with endpoint(lambda _: chat(prompt_tokens=3, completion_tokens=7)) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(60), handling=Handling(tokens_per_minute=30_000))
        began = time.monotonic()
        await shop.work(batch)
        assert time.monotonic() - began < 15.0  # 600 tokens at 500 a second; 16,000 would take half a minute


async def test_caps_come_change_and_go_while_calls_are_out(sqlite_db):
    answers = AtOnce(0.1)
    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=12)
        batch = await shop.batch([*chats(1)] * 2_000)

        async def at_most() -> int:
            answers.peak.clear()
            await asyncio.sleep(0.25)
            return answers.peak[0]

        async with shop.serving() as drain:
            await eventually(lambda: answers.now[0] == 12)
            for cap in (3, 6, None):
                await change(sqlite_db, batch_rows, batch.id, max_in_flight=cap)
                async with asyncio.timeout(5):
                    while await at_most() != (cap or 12):  # until it is known
                        pass
                assert await at_most() == (cap or 12)
            assert not drain._calls.caps.in_use


# ---------------------------------------------------------------- by themselves


def seen(batch_id: int = 1, *, tenant: Limits | None = None, **limits) -> Active:
    return Active(
        batch_id, 1, 0, None, 1, 1.0, 1.0, Limits(**limits), tenant or Limits(), remaining=9, at_most=9,
        waiting_since=None, canary_until=None, has_budget=False,
    )  # fmt: skip


async def test_what_is_out_when_a_cap_comes_is_counted_and_forgotten_when_it_ends():
    clock, places = Clock(), Counter({1: 5})
    limiter = MemoryLimiter(clock)
    caps = Caps(limiter, clock=clock, places=places.__getitem__)
    await caps.seen([seen()])
    assert not caps.in_use  # a batch without caps costs nothing
    await caps.seen([seen(max_in_flight=6)])
    assert await caps.take("batch:1", 4, tokens_each=1.0) == 1
    assert caps.blocked_seconds(1) > 0
    places[1] += 1
    for _ in range(4):
        places[1] -= 1
        caps.released(1)
    assert caps.blocked_seconds(1) == 0
    await caps.tell()
    assert await caps.take("batch:1", 9, tokens_each=1.0) == 4
    await caps.give_back({"batch:1": 4}, tokens_each=1.0)
    await caps.seen([])  # nothing to claim, and two calls are out
    assert caps.in_use
    for _ in range(2):
        places[1] -= 1
        caps.released(1)
    await caps.seen([])
    assert not caps.in_use
    assert not limiter._states


async def test_calls_that_end_while_the_limiter_is_told_are_counted_once():
    clock, places = Clock(), Counter({1: 5, 2: 5})
    ends: list[int] = []  # batches of which a call ends before the limiter's next answer

    class Slow(MemoryLimiter):
        async def acquire(self, *args, **kwargs):
            end()
            return await super().acquire(*args, **kwargs)

        async def settle(self, *args, **kwargs):
            end()
            await super().settle(*args, **kwargs)

    def end() -> None:
        while ends:
            batch_id = ends.pop()
            places[batch_id] -= 1
            caps.released(batch_id)

    limiter = Slow(clock)
    caps = Caps(limiter, clock=clock, places=places.__getitem__)
    ends[:] = [1]
    await caps.seen([seen(1, max_in_flight=9), seen(2, max_in_flight=9)])
    await caps.tell()
    assert limiter._states["batch:1"].in_flight == places[1] == 4
    assert limiter._states["batch:2"].in_flight == places[2] == 5
    ends[:] = [1, 2]
    await caps.seen([seen(1), seen(2)])
    assert not limiter._states


async def test_a_cap_that_is_taken_away_leaves_nothing_behind():
    clock, places = Clock(), Counter({1: 2, 2: 3})
    limiter = MemoryLimiter(clock)
    caps = Caps(limiter, clock=clock, places=places.__getitem__)
    both = Limits(max_in_flight=7)
    await caps.seen([seen(1, tenant=both), seen(2, tenant=both)])
    assert limiter._states["tenant:1"].in_flight == 5
    await caps.seen([seen(1), seen(2)])
    assert not caps.in_use
    assert not limiter._states


async def test_a_rate_is_remembered_until_nothing_is_owed():
    clock = Clock()
    limiter = MemoryLimiter(clock)
    caps = Caps(limiter, clock=clock, places=lambda _: 0)
    once_a_minute = seen(requests_per_minute=1.0)
    await caps.seen([once_a_minute])
    assert await caps.take("batch:1", 2, tokens_each=1.0) == 1
    caps.released(1)
    await caps.seen([])
    await caps.seen([once_a_minute])
    assert await caps.take("batch:1", 1, tokens_each=1.0) == 0
    clock.advance(60.1)
    await caps.seen([])
    assert not limiter._states
