"""Limits in Redis, as one worker after the other meets them: leases, pauses, an emptied Redis, none at all."""

import asyncio
import itertools
import logging

import pytest

from tests.conftest import eventually
from tests.worker.limits.conftest import long_established
from worker.limits import Bucket, Grant, Limits, redis
from worker.limits.share import FRESH_SECONDS, LEASE_SECONDS, LISTEN_SECONDS


def slots(count: int) -> list[Bucket]:
    return [Bucket("lane:1", Limits(max_in_flight=count))]


async def take(limiter, buckets, want=500) -> int:
    return (await limiter.acquire(buckets, want=want, tokens_each=1)).count


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(redis, "RETRY_SECONDS", 0.02)


@pytest.fixture
def established(redis_server, clock):
    long_established(redis_server, clock())
    return redis_server


# ---------------------------------------------------------------- slots and leases


@pytest.mark.usefixtures("established")
async def test_workers_share_the_slots(redis_limiters):
    a, b = redis_limiters("a"), redis_limiters("b")
    assert await take(a, slots(10), 6) == 6
    assert await take(b, slots(10), 6) == 4
    grant = await b.acquire(slots(10), want=1, tokens_each=1)
    assert (grant.count, grant.binding) == (0, "in_flight")
    assert grant.wait_seconds == pytest.approx(0.1)  # others' calls end too, and nobody tells this one


@pytest.mark.usefixtures("established")
async def test_a_killed_workers_slots_come_back_with_the_end_of_its_lease_and_not_before(redis_limiters, clock):
    killed, other = redis_limiters("killed"), redis_limiters("other")
    assert await take(killed, slots(10)) == 10
    clock.advance(LEASE_SECONDS - 0.1)
    assert await take(other, slots(10)) == 0
    clock.advance(0.2)
    assert await take(other, slots(10)) == 10


@pytest.mark.usefixtures("established")
async def test_a_frozen_worker_that_goes_on_makes_the_others_wait_until_it_has_finished(redis_limiters, clock):
    frozen, other = redis_limiters("frozen"), redis_limiters("other")
    await take(frozen, slots(10), 8)
    clock.advance(LEASE_SECONDS + 1)
    assert await take(other, slots(10), 6) == 6
    assert await take(frozen, slots(10)) == 0
    await other.settle(slots(10), ended=3, tokens=0)  # 8 + 3 are still out
    assert await take(other, slots(10)) == 0
    await frozen.settle(slots(10), ended=8, tokens=0)
    assert await take(other, slots(10), 7) > 0


@pytest.mark.usefixtures("established")
async def test_permits_that_arrive_after_the_lease_are_not_used(redis_limiters, clock, monkeypatch):
    limiter, other = redis_limiters("slow"), redis_limiters("other")
    await take(limiter, slots(10), 0)
    read = limiter._ledger._read

    def frozen_before_reading(reply):
        clock.advance(LEASE_SECONDS + 1)
        return read(reply)

    monkeypatch.setattr(limiter._ledger, "_read", frozen_before_reading)
    assert await limiter.acquire(slots(10), want=10, tokens_each=1) == Grant(0, 0.0)
    assert await take(other, slots(10)) == 10


async def test_a_heartbeat_keeps_the_lease(established, redis_limiters, clock, monkeypatch):
    monkeypatch.setattr(redis, "HEARTBEAT_SECONDS", 0.02)
    idle, other = redis_limiters("idle"), redis_limiters("other")
    await take(idle, slots(10))
    clock.advance(LEASE_SECONDS - 1)
    admin, name = established.admin(), idle._ledger._worker
    await eventually(lambda: admin.zscore("promptmill:limits:workers", name) > clock() + LEASE_SECONDS - 1)
    clock.advance(2)
    assert await take(other, slots(10)) == 0


async def test_who_leaves_gives_its_slots_back_at_once(established, redis_limiters):
    leaving, other = redis_limiters("leaving"), redis_limiters("other")
    await take(leaving, slots(10))
    await leaving.aclose()
    assert await take(other, slots(10)) == 10
    assert established.admin().zcard("promptmill:limits:workers") == 1


@pytest.mark.usefixtures("established")
async def test_a_worker_that_came_late_gets_its_part_of_the_slots(redis_limiters):
    early, late = redis_limiters("early"), redis_limiters("late")
    assert await take(early, slots(10)) == 10
    assert await take(late, slots(10)) == 0  # now it is known that it wants some
    await early.settle(slots(10), ended=7, tokens=0)
    assert await take(early, slots(10)) == 2
    assert await take(late, slots(10)) == 5
    await late.give_back(slots(10), count=4, tokens=4)  # it has no jobs for them after all
    assert await take(early, slots(10)) == 4


@pytest.mark.usefixtures("established")
async def test_a_late_command_of_a_dropped_connection_does_nothing(redis_limiters):
    limiter, other = redis_limiters("a"), redis_limiters("b")
    assert await take(limiter, slots(10), 8) == 8
    limiter._ledger._numbers = itertools.count(1)  # as if sent before
    with pytest.raises(redis.LedgerAwayError):
        await limiter._ledger.report([limiter._standing.change(slots(10)[0])])
    assert await take(other, slots(10)) == 2


@pytest.mark.usefixtures("established")
async def test_limits_may_change_from_call_to_call(redis_limiters):
    limiter = redis_limiters()
    assert await take(limiter, slots(3)) == 3
    assert await take(limiter, slots(8)) == 5
    assert await take(limiter, slots(2)) == 0


async def test_a_bucket_is_not_forgotten_while_an_answer_about_it_is_awaited(established, redis_limiters):
    limiter = redis_limiters()
    assert await take(limiter, slots(3), 1) == 1
    await limiter.settle(slots(3), ended=1, tokens=0)
    established.stand_still()
    task = asyncio.create_task(take(limiter, slots(3), 1))
    await eventually(limiter._turn.locked)
    assert not limiter.forget(slots(3)[0].key)
    established.go_on()
    assert await task == 1


async def test_a_cancelled_call_leaves_nothing_behind(established, redis_limiters):
    limiter, other = redis_limiters("a"), redis_limiters("b")
    await take(limiter, slots(10), 1)
    established.stand_still()
    for _ in range(3):
        task = asyncio.create_task(take(limiter, slots(10), 2))
        await eventually(limiter._turn.locked)  # it is being sent, and cannot be answered
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    established.go_on()
    await limiter.settle(slots(10), ended=1, tokens=0)
    assert await take(other, slots(10)) == 10


# ---------------------------------------------------------------- pauses


async def test_a_pause_holds_for_all_workers_and_through_a_flush(established, redis_limiters, clock):
    told, other = redis_limiters("told"), redis_limiters("other")
    await take(other, slots(10), 1)
    await told.pause("lane:1", until=clock() + 30)
    assert await other.acquire(slots(10), want=1, tokens_each=1) == Grant(0, 30.0, "paused")
    established.admin().flushall()
    # Both know of it, so either brings it back.
    assert await other.acquire(slots(10), want=1, tokens_each=1) == Grant(0, 30.0, "paused")
    newcomer = redis_limiters("newcomer")
    assert (await newcomer.acquire(slots(10), want=1, tokens_each=1)).binding == "paused"


async def test_a_pause_made_without_redis_is_known_to_it_afterwards(established, redis_limiters, clock):
    limiter = redis_limiters()
    await take(limiter, slots(10), 1)
    established.stop()
    await limiter.pause("lane:1", until=clock() + 30)
    assert await limiter.acquire(slots(10), want=1, tokens_each=1) == Grant(0, 30.0, "paused")
    established.start()
    await eventually(lambda: established.admin().hget("promptmill:lane:1", "paused_until"))
    assert await redis_limiters("other").acquire(slots(10), want=1, tokens_each=1) == Grant(0, 30.0, "paused")


# ---------------------------------------------------------------- emptied


async def test_after_a_flush_nobody_has_more_at_once_than_before_until_all_have_spoken(
    established, redis_limiters, clock, caplog
):
    busy, some, idle = redis_limiters("busy"), redis_limiters("some"), redis_limiters("idle")
    await take(idle, slots(100), 0)
    await take(some, slots(100), 15)
    assert await take(busy, slots(100), 80) == 80
    established.admin().flushall()
    await some.settle(slots(100), ended=5, tokens=0)  # 10 are left: that it may have, and not more
    assert await take(some, slots(100)) == 0
    assert await take(idle, slots(100)) == 0
    clock.advance(FRESH_SECONDS - 0.1)
    assert await take(idle, slots(100)) == 0
    assert await take(busy, slots(100), 5) == 0  # four times its share
    clock.advance(0.2)
    assert await take(idle, slots(100), 10) == 10
    assert [r.message for r in caplog.records if "emptied" in r.message]


async def test_a_debt_of_tokens_outlives_a_flush(established, redis_limiters):
    limiter = redis_limiters()
    buckets = [Bucket("lane:1", Limits(tokens_per_minute=60_000))]
    await limiter.acquire(buckets, want=1, tokens_each=50_000)
    established.admin().flushall()
    grant = await limiter.acquire(buckets, want=1, tokens_each=1)
    assert (grant.count, grant.binding) == (0, "tpm")
    assert grant.wait_seconds == pytest.approx(50, rel=0.02)


@pytest.mark.usefixtures("redis_server")
async def test_an_empty_redis_does_not_bring_a_burst(redis_limiters, clock):
    limiter = redis_limiters()
    assert await take(limiter, [Bucket("lane:1", Limits(requests_per_minute=6_000))]) == 0
    clock.advance(0.05)
    assert 1 <= await take(limiter, [Bucket("lane:1", Limits(requests_per_minute=6_000))]) <= 5


@pytest.mark.usefixtures("redis_server")
async def test_a_newcomer_to_an_empty_redis_lets_others_speak_first_then_takes_its_share(redis_limiters, clock):
    newcomer = redis_limiters("newcomer", assumed_workers=2)
    assert await take(newcomer, slots(100)) == 0
    clock.advance(LISTEN_SECONDS + 0.1)
    assert await take(newcomer, slots(100)) == 40
    assert await take(redis_limiters("second"), slots(100)) == 40
    third = redis_limiters("third")
    assert await take(third, slots(100)) == 20  # never more than is left
    clock.advance(FRESH_SECONDS)
    await newcomer.settle(slots(100), ended=40, tokens=0)
    assert await take(newcomer, slots(100)) == 34  # the third part: the other two want more as well


# ---------------------------------------------------------------- away


async def test_without_redis_a_worker_keeps_to_its_share_and_finds_back_by_itself(
    established, redis_limiters, clock, caplog
):
    caplog.set_level(logging.INFO)
    buckets = [Bucket("lane:1", Limits(requests_per_minute=6_000, max_in_flight=100))]
    a, b = redis_limiters("a"), redis_limiters("b")
    for limiter in (a, b):
        await take(limiter, buckets, 10)
    assert await take(a, buckets, 20) == 10  # the burst is used up
    clock.advance(10)
    assert await take(a, buckets) == 30  # 50 are out
    established.stop()

    # It had 50, and its share is 40.
    assert await take(a, buckets) == 0
    await a.settle(buckets, ended=20, tokens=0)
    for _ in range(20):
        clock.advance(0.1)
        await take(a, buckets)
    assert a._standing.states["lane:1"].in_flight == 40

    # In the long run it is 0.8 of the limit, for two.
    await a.settle(buckets, ended=40, tokens=0)
    started = 0
    for _ in range(600):
        clock.advance(0.02)
        count = await take(a, buckets)
        started += count
        await a.settle(buckets, ended=count, tokens=0)
    assert started == pytest.approx(0.4 * 6_000 / 60 * 12, rel=0.02)

    await a.acquire(buckets, want=3, tokens_each=1)
    established.start()
    await eventually(lambda: not a._away.is_set())
    held = established.admin().hget("promptmill:lane:1:in_flight", a._ledger._worker)
    assert int(held) == a._standing.states["lane:1"].in_flight
    told = [r.message for r in caplog.records if r.message.startswith("Redis is")]
    assert len(told) == 2  # once when it went, once when it came back
    assert "for 2 workers" in told[0]


async def test_a_redis_that_was_never_there_means_a_careful_share_and_no_error(redis_server, redis_limiters, clock):
    redis_server.stop()
    limiter = redis_limiters(assumed_workers=4)
    buckets = [Bucket("lane:1", Limits(requests_per_minute=6_000, max_in_flight=100))]
    assert await take(limiter, buckets) == 0  # no burst
    clock.advance(10)
    grant = await limiter.acquire(buckets, want=500, tokens_each=1)
    assert grant.count == 6  # a burst of a fifth
    for _ in range(100):
        clock.advance(1)
        await take(limiter, buckets)
    assert limiter._standing.states["lane:1"].in_flight == 20
    redis_server.start()
    await eventually(lambda: not limiter._away.is_set())
    await take(limiter, buckets)
    assert int(redis_server.admin().hvals("promptmill:lane:1:in_flight")[0].split(".")[0]) == 20


async def test_a_redis_that_says_nothing_is_waited_for_once(established, redis_limiters):
    limiter = redis_limiters(timeout_seconds=0.5)
    await take(limiter, slots(10), 4)
    established.stand_still()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(20):
        await limiter.acquire(slots(10), want=1, tokens_each=1)
    assert loop.time() - began < 5.0  # 10, were it waited for each time
    established.go_on()
    await eventually(lambda: not limiter._away.is_set())
    # What it had not answered has no effect when it goes on.
    assert float(established.admin().hvals("promptmill:lane:1:in_flight")[0]) == 4


async def test_what_redis_could_not_be_told_is_charged_to_the_share(established, redis_limiters, clock):
    limiter = redis_limiters()
    buckets = [Bucket("lane:1", Limits(tokens_per_minute=60_000))]
    await limiter.acquire(buckets, want=1, tokens_each=100)
    established.stop()
    await limiter.settle(buckets, ended=1, tokens=20_000)
    clock.advance(20)
    assert (await limiter.acquire(buckets, want=1, tokens_each=100)).count == 0
    clock.advance(6)
    assert (await limiter.acquire(buckets, want=1, tokens_each=100)).count == 1
    await limiter.settle(buckets, ended=1, tokens=6_000)
    established.start()
    await eventually(lambda: not limiter._away.is_set())
    # What it still owes, it owes to all.
    grant = await limiter.acquire(buckets, want=1, tokens_each=100)
    assert grant.count == 0
    assert grant.wait_seconds == pytest.approx(6.1, abs=0.3)


async def test_what_was_started_without_redis_counts_when_it_is_back(established, redis_limiters, clock):
    limiter = redis_limiters(timeout_seconds=0.05)
    buckets = [Bucket("lane:1", Limits(requests_per_minute=60))]
    assert await take(limiter, buckets) == 1
    established.stand_still()
    assert await take(limiter, buckets) == 0
    clock.advance(5)
    assert await take(limiter, buckets) == 1
    established.go_on()
    await eventually(lambda: not limiter._away.is_set())
    clock.advance(0.9)
    assert await take(limiter, buckets) == 0
    clock.advance(0.2)
    assert await take(limiter, buckets) == 1


async def test_no_permit_slips_through_while_a_worker_joins_again(established, redis_limiters, monkeypatch):
    limiter = redis_limiters(timeout_seconds=0.05)
    assert await take(limiter, slots(10), 8) == 8
    established.stand_still()
    await limiter.settle(slots(10), ended=4, tokens=0)
    joining, may_go_on = asyncio.Event(), asyncio.Event()
    report = limiter._ledger.report

    async def slow_report(changes, mode=""):
        joining.set()
        await may_go_on.wait()
        return await report(changes, mode)

    monkeypatch.setattr(limiter._ledger, "report", slow_report)
    established.go_on()
    await joining.wait()
    taking = asyncio.create_task(take(limiter, slots(10), 2))
    await asyncio.sleep(0)
    assert limiter._standing.states["lane:1"].in_flight == 4  # Redis is just being told of four
    may_go_on.set()
    assert await taking == 2
    assert float(established.admin().hvals("promptmill:lane:1:in_flight")[0]) == 6
    assert await take(redis_limiters("other"), slots(10)) <= 4


async def test_closing_does_not_hang_whatever_it_is_doing(established, redis_limiters):
    for turns in range(25):
        limiter = redis_limiters()
        await take(limiter, slots(10), 1)
        if turns == 0:
            established.stop()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await limiter.aclose()
