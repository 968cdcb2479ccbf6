"""The drain, against endpoints that do what a test says: what is claimed, what ends it, what it survives."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import LaneState, State
from promptmill.outcome import Reason
from promptmill.store import batches, claims, lanes, workers
from promptmill.store.claims import Claimed
from promptmill.tables import batches as batch_rows
from promptmill.tables import workers as worker_rows
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint, never, refusal, text_of
from tests.worker.workshop import chats, workshop
from worker import drain as drain_module
from worker import recorder as recorder_module
from worker import starting as starting_module
from worker import upkeep as upkeep_module


class MovableClock:
    """Real time, until a test moves it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Gate:
    """Holds calls until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, call) -> bytes:
        await self.opened.wait()
        return chat(f"echo {text_of(call)}")

    def open(self) -> None:
        self.opened.set()


async def ended(task: "asyncio.Task[object]", seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        await task


# ---------------------------------------------------------------- to the end, and not before


async def test_every_job_is_answered_once_and_the_ledger_says_so(db):
    async with endpoint(lambda call: chat(f"echo {text_of(call)}")) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(50))
        await shop.work(batch)
    results = await shop.results(batch)
    assert [result.position for result in results] == list(range(50))
    assert all(b"echo %d" % result.position in result.body for result in results)
    assert len(upstream.calls) == 50
    assert await shop.ledger(batch) == {"succeeded": 50}
    assert (await shop.now(batch)).state.value == "completed"


async def test_a_retry_that_is_still_being_written_keeps_the_drain_from_ending(sqlite_db, monkeypatch):
    async with endpoint(lambda _: refusal("500 Oops") if len(upstream.calls) == 1 else chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(1))
        record = recorder_module.record

        async def slowly(*args, **kwargs):
            await asyncio.sleep(1.2)  # longer than a drain looks away
            return await record(*args, **kwargs)

        monkeypatch.setattr(recorder_module, "record", slowly)
        await shop.work(batch)
    assert not await shop.unfinished(batch)


async def test_jobs_that_a_dead_worker_still_holds_are_waited_for(db, monkeypatch):
    """On a server's database nobody may take them before the dead one's lease has run out."""
    monkeypatch.setattr(upkeep_module, "SPEAK_SECONDS", 0.0)
    clock = MovableClock()
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        shop.clock = clock
        batch = await shop.batch(chats(4))
        dead = await workers.register(db, name="dead:1", now=clock())
        (lane_id,) = await lanes_of(shop, batch)
        await claims.claim(db, worker_id=dead, lane_id=lane_id, shares=[(batch.id, 3)], max_bytes=1 << 20)
        task = asyncio.create_task(shop.work(batch))
        await eventually(lambda: succeeded(shop, batch))
        done, _ = await asyncio.wait({task}, timeout=1.5)  # it looks for the end at least once a second
        assert not done
        clock.ahead = workers.LEASE_SECONDS + 1
        await ended(task)
    assert not await shop.unfinished(batch)
    assert await shop.ledger(batch) == {"succeeded": 4, "worker_lost": 3}


async def succeeded(shop, batch) -> int:
    return (await shop.now(batch)).succeeded


async def lanes_of(shop, batch) -> list[int]:
    return list(await batches.lane_names(shop.db, batch.id))


async def test_an_answer_that_is_not_written_takes_up_the_place_of_its_call(sqlite_db, monkeypatch):
    """So that what is sent again after a crash is never more than may be in flight."""
    record, let_through = recorder_module.record, asyncio.Event()

    async def when_let_through(*args, **kwargs):
        await let_through.wait()
        return await record(*args, **kwargs)

    monkeypatch.setattr(recorder_module, "record", when_let_through)
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=6)
        batch = await shop.batch(chats(30))
        task = asyncio.create_task(shop.work(batch))
        await eventually(lambda: len(upstream.calls) == 6 and upstream.in_flight == 0)
        await asyncio.wait({task}, timeout=0.5)
        assert len(upstream.calls) == 6
        let_through.set()
        await ended(task)
    assert await shop.ledger(batch) == {"succeeded": 30}


# ---------------------------------------------------------------- on a server, which never ends by itself


async def test_a_drain_without_an_end_goes_on_and_takes_single_jobs_when_it_is_woken(db, monkeypatch):
    # So it is the hint that finds them.
    monkeypatch.setattr(starting_module, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(drain_module, "LOOK_SECONDS", 3600.0)
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        async with shop.serving() as drain:
            for n in range(1, 6):
                batch = await shop.batch(chats(1))
                began = time.monotonic()
                drain.wake()
                await eventually(lambda n=n: drain.counts.succeeded == n)
                assert time.monotonic() - began < 5.0
                assert not await shop.unfinished(batch)


async def test_a_worker_says_which_lanes_it_does_not_serve(db, monkeypatch):
    monkeypatch.setattr(workers, "HEARTBEAT_SECONDS", 0.1)
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(3))
        (lane_id,) = await batches.lane_names(db, batch.id)
        (known,) = shop.settings.upstreams
        shop.settings = replace(shop.settings, upstreams=(replace(known, name="another"),))

        async def not_served():
            return (await workers.at_work(db, now=shop.clock())).not_served

        async with shop.serving():
            assert await eventually(not_served) == {lane_id}
        assert not upstream.calls
        assert await not_served() == frozenset()  # nobody is there any more


async def test_a_small_batch_for_a_model_that_is_not_there_halts_and_is_seen(db):
    async with endpoint(lambda _: refusal("404 Not Found", "no such model")) as upstream:
        shop = workshop(db, upstream.url)
        async with shop.serving() as drain:
            batch = await shop.batch(chats(2))
            await eventually(lambda: is_halted(shop))
            await eventually(lambda: drain.counts.waits == 2)
            assert await shop.unfinished(batch) == {State.READY: 2}
            assert not drain._calls.holds_any()


async def is_halted(shop) -> bool:
    return [
        (lane.reason, lane.halt_status) for lane in await lanes.read(shop.db) if lane.state is LaneState.HALTED
    ] == [("no such model", 404)]


async def test_a_404_is_judged_when_its_neighbour_has_failed_for_good(sqlite_db):
    """The neighbour never says anything about the model: nothing more is to come."""

    def answers(call) -> bytes:
        return refusal("404 Not Found", "no such model") if text_of(call) == "0" else refusal("500 Oops")

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_attempts=3)
        async with shop.serving() as drain:
            batch = await shop.batch(chats(2))
            await eventually(lambda: is_halted(shop))
            await eventually(lambda: drain.counts.waits == 1)
        assert await shop.ledger(batch) == {"model_not_available": 1, "server_error": 3}


async def test_a_403_waits_for_a_neighbour_that_is_tried_again(sqlite_db):
    def answers(call) -> bytes:
        if text_of(call) == "0":
            return refusal("403 Forbidden", "too long for you")
        return refusal("429 Slow down", "soon", "Retry-After: 2") if len(upstream.calls) <= 2 else chat()

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        async with shop.serving() as drain:
            batch = await shop.batch(chats(2))
            await eventually(lambda: drain.counts.succeeded == drain.counts.failed == 1)
            assert not drain.halts()
    assert [result.error_code for result in await shop.results(batch)] == ["forbidden", None]


async def test_a_refused_key_that_had_worked_does_not_hold_the_last_jobs_for_ever(db):
    async with endpoint(lambda _: chat() if len(upstream.calls) <= 3 else refusal("401 No", "revoked")) as upstream:
        shop = workshop(db, upstream.url)
        async with shop.serving() as drain:
            await shop.batch(chats(3))
            await eventually(lambda: drain.counts.succeeded == 3)
            batch = await shop.batch(chats(2))
            await eventually(lambda: drain.counts.failed == 2)
        assert [result.error_code for result in await shop.results(batch)] == ["unauthorized"] * 2


async def test_a_heartbeat_says_what_its_lanes_wait_for(sqlite_db, monkeypatch):
    monkeypatch.setattr(drain_module.workers, "HEARTBEAT_SECONDS", 0.05)
    async with endpoint(lambda _: refusal("401 No", "not you")) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        async with shop.serving():
            await shop.batch(chats(2))

            async def halted_is_shown() -> bool:
                (lane,) = await lanes.read(sqlite_db)
                async with sqlite_db.read() as connection:
                    text = (await connection.execute(sa.select(worker_rows.c.waiting_for))).scalar_one()
                return json.loads(text or "{}") == {str(lane.id): "halted"}

            await eventually(halted_is_shown)


# ---------------------------------------------------------------- stopping


async def test_a_stop_gives_back_what_does_not_end_within_the_grace(db):
    async with endpoint(never) as upstream:
        shop = workshop(db, upstream.url, grace_seconds=0.2)
        batch = await shop.batch(chats(5))
        stop = asyncio.Event()
        task = asyncio.create_task(shop.drain(batch).run(stop))
        await eventually(lambda: len(upstream.calls) == 5)
        stop.set()
        await ended(task)
        assert await shop.unfinished(batch) == {State.READY: 5}
        assert await shop.attempts_so_far(batch) == [0] * 5
        assert await shop.ledger(batch) == {Reason.STOPPED: 5}


async def test_a_stop_lets_calls_end_that_do_so_within_the_grace(db):
    gate = Gate()
    async with endpoint(gate) as upstream:
        shop = workshop(db, upstream.url, grace_seconds=30)
        batch = await shop.batch(chats(20))
        stop = asyncio.Event()
        drain = shop.drain(batch)
        task = asyncio.create_task(drain.run(stop))
        await eventually(lambda: len(upstream.calls) == 8)
        stop.set()
        gate.open()
        await ended(task)
        assert drain.counts.succeeded == len(upstream.calls) == 8  # nothing more was started
        assert await shop.unfinished(batch) == {State.READY: 12}


async def test_abandoning_does_not_wait_for_the_grace(sqlite_db):
    async with endpoint(never) as upstream:
        shop = workshop(sqlite_db, upstream.url, grace_seconds=3600)
        batch = await shop.batch(chats(3))
        stop, drain = asyncio.Event(), shop.drain(batch)
        task = asyncio.create_task(drain.run(stop))
        await eventually(lambda: len(upstream.calls) == 3)
        stop.set()
        drain.abandon()
        await ended(task, 5)
        assert await shop.unfinished(batch) == {State.READY: 3}


async def test_a_stop_during_a_long_pause_is_at_once(sqlite_db):
    async with endpoint(lambda _: refusal("429 Slow down", "later", "Retry-After: 3000")) as upstream:
        shop = workshop(sqlite_db, upstream.url, grace_seconds=3600)
        batch = await shop.batch(chats(1))
        stop, drain = asyncio.Event(), shop.drain(batch)
        task = asyncio.create_task(drain.run(stop))
        await eventually(lambda: drain.counts.waits == 1)
        stop.set()
        await ended(task, 5)
    assert await shop.unfinished(batch) == {State.WAITING: 1}


async def test_a_cancelled_drain_gives_everything_back(sqlite_db):
    async with endpoint(never) as upstream:
        shop = workshop(sqlite_db, upstream.url, grace_seconds=3600)
        batch = await shop.batch(chats(3))
        task = asyncio.create_task(shop.drain(batch).run(asyncio.Event()))
        await eventually(lambda: len(upstream.calls) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ended(task, 5)
        assert await shop.unfinished(batch) == {State.READY: 3}


# ---------------------------------------------------------------- staying alive


async def test_a_clock_that_jumps_ahead_does_not_make_a_worker_bury_itself(db, monkeypatch):
    """A laptop that was asleep: its own heartbeat is old, and its calls are still its own."""
    monkeypatch.setattr(upkeep_module, "SPEAK_SECONDS", 0.0)  # which would also keep it from that
    clock, gate = MovableClock(), Gate()
    async with endpoint(gate) as upstream:
        shop = workshop(db, upstream.url)
        shop.clock = clock
        batch = await shop.batch(chats(3))
        task = asyncio.create_task(shop.work(batch))
        await eventually(lambda: len(upstream.calls) == 3)
        clock.ahead = 3600.0
        await eventually(lambda: heartbeat_is_fresh(shop))
        gate.open()
        await ended(task)
    assert len(upstream.calls) == 3
    assert await shop.ledger(batch) == {"succeeded": 3}


async def heartbeat_is_fresh(shop) -> bool:
    async with shop.db.read() as connection:
        beat = (await connection.execute(sa.select(sa.func.max(worker_rows.c.heartbeat_at)))).scalar_one()
    return shop.clock() - beat < 60


async def test_what_a_frozen_worker_records_too_late_is_dropped(db, monkeypatch):
    """Two drains; the second one's clock is so far ahead that it takes the first one for dead."""
    monkeypatch.setattr(upkeep_module, "SPEAK_SECONDS", 0.0)
    clock, gate = MovableClock(), Gate()

    async def answers(call) -> bytes:
        return await gate(call) if len(upstream.calls) <= 3 else chat("from the second")

    async with endpoint(answers) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(3))
        frozen = asyncio.create_task(shop.work(batch))
        await eventually(lambda: len(upstream.calls) == 3)
        clock.ahead = workers.LEASE_SECONDS + 1
        await shop.work(batch, clock=clock, worker_name="test:2")
        gate.open()
        await ended(frozen)
    results = await shop.results(batch)
    assert len(results) == 3
    assert all(b"from the second" in result.body for result in results)
    batch = await shop.now(batch)
    assert (batch.succeeded, batch.total) == (3, 3)


async def test_a_worker_that_was_taken_for_dead_goes_on_under_a_new_id(db, monkeypatch):
    monkeypatch.setattr(drain_module.workers, "HEARTBEAT_SECONDS", 0.1)
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        first = await shop.batch(chats(1))
        drain = shop.drain(until_done=False)
        stop = asyncio.Event()
        task = asyncio.create_task(drain.run(stop))
        await eventually(lambda: drain.counts.succeeded == 1)
        later = time.time() + 3600
        assert await workers.reap(db, worker_ids=await workers.silent(db, now=later), now=later) == 0
        await eventually(lambda: alive_now(shop))
        second = await shop.batch(chats(5))
        await eventually(lambda: drain.counts.succeeded == 6)
        stop.set()
        await ended(task)
    assert not await shop.unfinished(first)
    assert not await shop.unfinished(second)
    assert not await alive_now(shop)


async def alive_now(shop) -> int:
    return await workers.alive(shop.db, now=time.time())


# ---------------------------------------------------------------- the database goes away


async def test_a_claim_whose_commit_was_not_heard_of_is_not_lost(db, monkeypatch):
    """The connection breaks after the commit: the jobs are ours and we do not know it."""
    claim, broken = claims.claim, []

    async def claim_and_break(*args, **kwargs) -> list[Claimed]:
        jobs = await claim(*args, **kwargs)
        if jobs and not broken:
            broken.append(len(jobs))
            raise ConnectionResetError
        return jobs

    monkeypatch.setattr(claims, "claim", claim_and_break)
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(20))
        await shop.work(batch)
    assert broken
    assert not await shop.unfinished(batch)
    assert await shop.ledger(batch) == {"succeeded": 20}


async def test_a_locked_database_costs_time_and_nothing_else(sqlite_db, monkeypatch):
    """Somebody holds the write lock longer than a writer waits for it."""
    monkeypatch.setattr("promptmill.engine.SQLITE_BUSY_SECONDS", 0.2)
    gate = Gate()
    async with endpoint(gate) as upstream:
        shop = workshop(Database(str(sqlite_db.url.database)), upstream.url)
        batch = await shop.batch(chats(20))
        drain = shop.drain(batch)
        task = asyncio.create_task(drain.run(asyncio.Event()))
        await eventually(lambda: len(upstream.calls) == 8)
        async with sqlite_db.write():
            gate.open()
            await eventually(lambda: upstream.in_flight == 0)
            await asyncio.sleep(1.0)  # several tries to write fail
            assert drain.counts.succeeded == 0
        await ended(task)
        assert len(upstream.calls) == 20
        assert await shop.ledger(batch) == {"succeeded": 20}
        assert (await shop.now(batch)).succeeded == 20
        await shop.db.aclose()


async def test_connections_that_are_cut_cost_no_result_and_no_attempt(postgres_db_url):
    db, admin = Database(postgres_db_url), Database(postgres_db_url)
    cut = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    async def answers(call) -> bytes:
        await asyncio.sleep(0.02)
        return chat(text_of(call))

    async with endpoint(answers) as upstream:
        shop = workshop(db, upstream.url, max_in_flight=8)
        batch = await shop.batch(chats(300))
        drain = shop.drain(batch)
        task = asyncio.create_task(drain.run(asyncio.Event()))
        for goal in (20, 80, 150, 220):
            await eventually(lambda goal=goal: drain.counts.succeeded >= goal)
            async with admin.write() as connection:
                await connection.execute(cut)
        await ended(task, 40)
    assert len(upstream.calls) == 300
    assert await shop.ledger(batch) == {"succeeded": 300}
    assert (await shop.now(batch)).succeeded == 300
    assert not await shop.unfinished(batch)
    await admin.aclose()
    await db.aclose()


# ---------------------------------------------------------------- whose turn it is


async def test_a_tenant_with_many_batches_gets_no_more_than_one_with_a_single_batch(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url, max_in_flight=2)
        many = [await shop.batch(chats(12)) for _ in range(5)]
        single = await shop.batch(chats(12))
        async with db.write() as connection:
            theirs = sa.update(batch_rows).where(batch_rows.c.id == single.id)
            await connection.execute(theirs.values(tenant_id=2))
        drain, stop = shop.drain(until_done=False), asyncio.Event()
        task = asyncio.create_task(drain.run(stop))

        async def single_is_done():
            return (await shop.now(single)).succeeded == 12

        await eventually(single_is_done, seconds=20)
        others = sum([(await shop.now(batch)).succeeded for batch in many])
        stop.set()
        await ended(task)
    assert others <= 12 + 8  # side by side, but for what was under way and not counted yet


async def test_on_a_lane_limited_by_its_rate_batches_take_turns(sqlite_db):
    """Calls that end at once leave nothing in flight to go by: what was served before decides."""
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url, requests_per_minute=1_200.0)
        first, second = [await shop.batch(chats(20)) for _ in range(2)]
        drain, stop = shop.drain(until_done=False), asyncio.Event()
        task = asyncio.create_task(drain.run(stop))

        async def half():
            done = [(await shop.now(batch)).succeeded for batch in (first, second)]
            return done if sum(done) >= 20 else None

        done = await eventually(half, seconds=20)
        stop.set()
        await ended(task)
    assert min(done) >= 6
