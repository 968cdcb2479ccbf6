"""What is to be expected of batches, through the real rows of both databases: how well the end is foretold half way,
and what is said when something is in the way."""

import math
from random import Random

import pytest
import sqlalchemy as sa

from promptmill import outlook
from promptmill.fairness import Contender, Served, Tenant, shares
from promptmill.foresight import Load
from promptmill.handling import Handling
from promptmill.outlook import Planned, Wait
from promptmill.priority import HIGH
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import batches, control, files, lanes, pauses, sums, workers
from promptmill.store import outlook as rows
from promptmill.store.batches import NewBatch
from promptmill.store.pauses import What
from promptmill.store.sums import CallMade
from promptmill.store.workers import NOT_CONFIGURED
from promptmill.tables import batches as batch_table
from promptmill.tables import tenants
from promptmill.turns import played

JOBS = 20_000


def settings_of(**upstream):
    return Settings(upstreams=(UpstreamConfig(name="up", url="http://up/v1", **upstream),))


class Yard:
    """Batches of which there are only the counts, and lanes that do what a test says they did."""

    def __init__(self, db, clock):
        self.db, self.clock, self.settings = db, clock, settings_of()

    async def batch(self, left, *, models=("m",), done=0, **terms):
        file_id = await files.create(self.db, filename="t.jsonl", purpose="batch", now=self.clock())
        new = NewBatch(file_id=file_id, source="t.jsonl", defaults="{}", **terms)
        batch = await batches.create(self.db, new, now=self.clock())
        each = {await lanes.ensure(self.db, "up", model): (left + done) // len(models) for model in models}
        await batches.open_(self.db, batch_id=batch.id, jobs_by_lane=each, invalid=0, now=self.clock())
        return await self.did(batch, done)

    async def did(self, batch, succeeded):
        async with self.db.write() as connection:
            statement = sa.update(batch_table).where(batch_table.c.id == batch.id).values(succeeded=succeeded)
            await connection.execute(statement)
        return await batches.get(self.db, batch.id)

    async def ended(self, moments, *, model="m", call_seconds=2.0, failed=()):
        """Jobs of the lane finished at these moments; calls that are tried again ended at those."""
        lane_id = await lanes.ensure(self.db, "up", model)
        calls = [CallMade(lane_id, "succeeded", True, call_seconds, 10, 20, at, True) for at in moments]
        calls += [CallMade(lane_id, "server_error", True, call_seconds, 0, 0, at, False) for at in failed]
        async with self.db.write() as connection:
            await sums.add(self.db, connection, calls)

    async def steadily(self, per_second, seconds, **more):
        """The last so many seconds, and the worker that did it is alive."""
        await self.working(seconds)
        count = int(per_second * seconds)
        await self.ended([self.clock() - seconds + (n + 0.5) / per_second for n in range(count)], **more)

    async def working(self, seconds=0.0):
        """A worker is alive, and has been for so long."""
        worker_id = await workers.register(self.db, name="w", now=self.clock() - seconds)
        await workers.heartbeat(self.db, worker_id=worker_id, in_flight=1, now=self.clock())

    async def look(self, batch, **more):
        found = await outlook.of_batches(self.db, self.settings, [batch], now=self.clock(), **more)
        return found[batch.id]


@pytest.fixture
def yard(db, clock):
    return Yard(db, clock)


# ---------------------------------------------------------------- how well


def run(pace, faults, seed):
    """(moments at which jobs end, moments of calls that failed): a fault takes its call's time and its job's turn."""
    dice, ends, failed, now = Random(seed), [], [], 0.0  # noqa: S311 - nothing secret
    while len(ends) < JOBS:
        now += dice.expovariate(pace(now))
        (failed if dice.random() < faults else ends).append(now)
    return ends, failed


LOADS = {
    "steady": (lambda _: 10.0, 0.0),
    "bursts and a fifth of faults": (lambda t: 25.0 if t % 40 < 15 else 3.0, 0.2),
    "slowing down": (lambda t: max(14.0 - t / 250, 4.0), 0.0),
    "speeding up": (lambda t: 6.0 + t / 300, 0.05),
}


@pytest.mark.parametrize(("pace", "faults"), LOADS.values(), ids=LOADS)
async def test_half_way_the_end_is_foretold_within_fifteen_percent(yard, clock, pace, faults):
    ends, failed = run(pace, faults, seed=7)
    batch = await yard.batch(JOBS)
    began, half = clock(), ends[JOBS // 2]
    clock.advance(half)
    await yard.working(half)
    past = [[began + at for at in moments if at <= half] for moments in (ends, failed)]
    await yard.ended(past[0], failed=past[1])
    found = await yard.look(await yard.did(batch, len(past[0])))
    assert found.reason is None
    assert found.foresight.seconds.likely == pytest.approx(ends[-1] - half, rel=0.15)
    assert found.foresight.seconds.low <= ends[-1] - half <= found.foresight.seconds.high


async def test_what_the_lane_did_before_the_batch_does_not_drag_it_down(yard, clock):
    await yard.ended([clock() + n * 20 for n in range(100)])  # a call now and then
    clock.advance(2_000)
    batch = await yard.batch(4_000)
    clock.advance(100)
    await yard.steadily(20, 100)
    found = await yard.look(await yard.did(batch, 2_000))
    assert found.foresight.seconds.likely == pytest.approx(100, rel=0.15)


async def test_some_seconds_are_enough_to_tell_something(yard, clock):
    batch = await yard.batch(2_000)
    clock.advance(7)
    await yard.steadily(20, 7)
    found = await yard.look(await yard.did(batch, 140))
    assert found.foresight.seconds.likely == pytest.approx(93, rel=0.15)


# ---------------------------------------------------------------- beside others


async def test_shares_of_a_lane(yard, clock):
    heavy = await _tenant(yard.db, "heavy", 3.0)
    own = await yard.batch(1_000)
    rival = await yard.batch(100_000, tenant_id=heavy)
    await yard.batch(500, priority=HIGH)
    later = await yard.batch(9_000, priority=HIGH, handling=Handling(not_before=clock() + 9_999))
    stopped = await yard.batch(9_000, priority=HIGH)
    await pauses.pause(yard.db, What.BATCH, stopped.id, now=clock())
    clock.advance(100)
    await yard.steadily(50, 100)
    seconds = {each.id: (await yard.look(each)).work.seconds.likely for each in (own, rival, later)}
    assert seconds[own.id] == pytest.approx((500 + 4 * 1_000) / 50, rel=0.1)
    assert seconds[rival.id] == pytest.approx((500 + 101_000) / 50, rel=0.1)
    assert seconds[later.id] == pytest.approx(9_899 + (500 + 9_000) / 50, rel=0.1)


async def test_limits_of_an_upstream_hold_for_all_of_its_lanes(yard):
    await yard.working()
    batch = await yard.batch(1_000, models=("a", "b"))
    yard.settings = settings_of(requests_per_minute=600)
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(50)
    yard.settings = settings_of(requests_per_minute=600, shared_limits=True)
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(100)
    yard.settings = settings_of(tokens_per_minute=256_000 + 1_000, shared_limits=True)  # no answer yet: 256 are taken
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(60, rel=0.01)


async def test_caps_of_the_batch(yard):
    await yard.working()
    batch = await yard.batch(1_000, models=("a", "b"), handling=Handling(requests_per_minute=60))
    yard.settings = settings_of(requests_per_minute=6_000)
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(1_000)


async def test_a_count_is_believed_more_than_an_estimate(yard, clock):
    batch = await yard.batch(1_000, models=("a", "b"), done=500)
    fast, slow = sorted(await batches.lane_names(yard.db, batch.id))
    clock.advance(100)
    await yard.steadily(5, 100, model="a")
    await yard.steadily(5, 100, model="b")
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(100, rel=0.1)
    counted = await yard.look(batch, left={batch.id: {fast: 0, slow: 1_000}})
    assert counted.foresight.seconds.likely == pytest.approx(200, rel=0.1)


async def test_a_page_of_batches_takes_as_many_statements_as_one(yard, clock):
    page = [await yard.batch(100) for _ in range(7)]
    await yard.steadily(5, 100)
    counted = []
    for asked in (page[:1], page):
        statements = []
        engine = yard.db.engine.sync_engine

        def heard(_connection, _cursor, statement, *_rest, into=statements):
            into.append(statement)

        sa.event.listen(engine, "before_cursor_execute", heard)
        found = await outlook.of_batches(yard.db, yard.settings, asked, now=clock())
        sa.event.remove(engine, "before_cursor_execute", heard)
        counted.append(len([each for each in statements if "SELECT" in each]))
        assert len(found) == len(asked)
    assert counted[0] == counted[1] <= 8


async def _tenant(db, name, weight=1.0):
    async with db.write() as connection:
        await connection.execute(sa.insert(tenants).values(name=name, created_at=0.0, weight=weight))
        return (await connection.execute(sa.select(tenants.c.id).where(tenants.c.name == name))).scalar_one()


async def run_beside(yard, clock, work, weights, *, pace):
    """Batches are worked off by the rule at this pace; half way through all, (seconds foretold, seconds it took) of
    each that is still to end."""
    served, done, told, ends, began = Served(), 0, {}, {}, clock()
    left, total = {row.id: row.total for row in work}, sum(row.total for row in work)
    while any(left.values()):
        ready = [
            Contender(row.id, tenant_id=row.tenant_id, weight=row.weight, deadline=row.deadline, ready=left[row.id])
            for row in work
            if left[row.id]
        ]
        split = shares(
            ready,
            10,
            tenants={id_: Tenant(weight) for id_, weight in weights.items()},
            served=served,
            scarce="starts",
            now=clock(),
            seconds_per_permit=1 / pace,
        )
        served = served.noting(ready, split)
        for batch_id, count in split:
            left[batch_id] -= count
            done += count
            if not left[batch_id]:
                ends[batch_id] = clock()
        clock.advance(sum(count for _, count in split) / pace)
        if not told and done >= total / 2:
            half, seconds = clock(), clock() - began
            await yard.working(seconds)
            await yard.ended([began + n / pace for n in range(done)], call_seconds=0.1)
            rows_ = [await yard.did(row, row.total - left[row.id]) for row in work]
            found = await outlook.of_batches(yard.db, yard.settings, rows_, now=half)
            told = {id_: each.foresight.seconds.likely for id_, each in found.items() if left[id_]}
    return {id_: (seconds, ends[id_] - half) for id_, seconds in told.items()}


async def test_half_way_two_tenants_with_day_windows_are_foretold(yard, clock):
    other = await _tenant(yard.db, "other", 2.0)
    work = [
        await yard.batch(9_000, deadline=clock() + 86_400),
        await yard.batch(6_000, deadline=clock() + 86_400, tenant_id=other),
        await yard.batch(9_000, deadline=clock() + 86_401, tenant_id=other),
    ]
    told = await run_beside(yard, clock, work, {other: 2.0}, pace=10.0)
    assert len(told) == 3
    for likely, took in told.values():
        assert likely == pytest.approx(took, rel=0.15)


async def test_half_way_a_deadline_that_reorders_the_lane_is_foretold(yard, clock):
    """The light one has next to nothing of the lane; as its deadline comes near it passes the others."""
    other = await _tenant(yard.db, "other")
    work = [
        await yard.batch(19_000),
        await yard.batch(3_000, deadline=clock() + 3_000, handling=Handling(weight=0.05)),
        await yard.batch(18_000, deadline=clock() + 40_000, tenant_id=other),
    ]
    told = await run_beside(yard, clock, work, {}, pace=10.0)
    assert len(told) == 3
    assert told[work[1].id][1] < 600
    for likely, took in told.values():
        assert likely == pytest.approx(took, rel=0.15)


async def test_ten_beside_a_batch_that_is_tight_are_told_how_long_it_takes(yard, clock):
    await yard.batch(2_400, done=600, deadline=clock() + 330)
    small = await yard.batch(40)
    clock.advance(60)
    await yard.steadily(10, 60)
    assert (await yard.look(small)).foresight.seconds.likely == pytest.approx(240, rel=0.1)


async def test_a_look_at_many_batches_of_a_lane_plays_it_once(yard, clock, monkeypatch):
    page = [await yard.batch(100, deadline=clock() + 900 + n) for n in range(7)]
    clock.advance(100)
    await yard.steadily(5, 100)
    plays = []
    monkeypatch.setattr(outlook, "played", lambda *args: plays.append(args) or played(*args))
    found = await outlook.of_batches(yard.db, yard.settings, page, now=clock())
    assert (len(found), len(plays)) == (7, 1)
    assert (await yard.look(page[3])).foresight.seconds.likely == pytest.approx(140, rel=0.1)  # all press, and share


# ---------------------------------------------------------------- pauses


async def paused_for(yard, clock, what, seconds):
    """600 jobs at 20 a second; 10 s after their beginning they are paused for so long."""
    batch, began = await yard.batch(600), clock()
    (lane_id,) = await batches.lane_names(yard.db, batch.id)
    id_ = {What.BATCH: batch.id, What.LANE: lane_id, What.TENANT: batch.tenant_id, What.ALL: 0}[what]
    clock.advance(13)
    await yard.ended([began + 0.2 + n / 20 for n in range(256)], call_seconds=0.2)
    await pauses.pause(yard.db, what, id_, now=clock())
    clock.advance(seconds)
    await yard.working(13 + seconds)
    return await yard.did(batch, 256), id_


@pytest.mark.parametrize("what", What)
async def test_a_short_pause_is_no_slowness(yard, clock, what):
    batch, id_ = await paused_for(yard, clock, what, 18)
    assert (await yard.look(batch)).work.seconds.likely == pytest.approx(344 / 20, rel=0.15)
    await pauses.resume(yard.db, what, id_, now=clock())
    clock.advance(3)
    await yard.ended([clock() - 2.8 + n / 20 for n in range(56)], call_seconds=0.2)
    seconds = (await yard.look(await yard.did(batch, 312))).foresight.seconds
    assert seconds.likely == pytest.approx(288 / 20, rel=0.15)
    assert seconds.low < 288 / 20 < seconds.high


async def test_a_stop_is_no_slowness_either(yard, clock):
    """Ctrl-C, half a minute, and the same line again."""
    batch, began = await yard.batch(600), clock()
    worker_id = await workers.register(yard.db, name="w", now=began)
    clock.advance(13)
    await yard.ended([began + 0.2 + n / 20 for n in range(256)], call_seconds=0.2)
    await workers.stopped(yard.db, worker_id=worker_id, now=clock())
    clock.advance(28)
    await yard.working()
    clock.advance(3)
    await yard.ended([clock() - 2.8 + n / 20 for n in range(56)], call_seconds=0.2)
    seconds = (await yard.look(await yard.did(batch, 312))).foresight.seconds
    assert seconds.likely == pytest.approx(288 / 20, rel=0.15)


async def test_a_pause_in_which_others_went_on_is_no_pause_of_the_lane(yard, clock):
    await yard.batch(9_000)
    batch = await yard.batch(600)
    clock.advance(30)
    await pauses.pause(yard.db, What.BATCH, batch.id, now=clock())
    clock.advance(60)
    await pauses.resume(yard.db, What.BATCH, batch.id, now=clock())
    clock.advance(30)
    await yard.steadily(10, 60)
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(120, rel=0.1)


async def test_pauses_that_were_over_long_ago_are_forgotten(yard, clock):
    batch, _ = await paused_for(yard, clock, What.BATCH, 18)
    await pauses.resume(yard.db, What.BATCH, batch.id, now=clock())
    (queued,) = await rows.queue(yard.db, await batches.lane_names(yard.db, batch.id))
    assert (queued.is_paused, queued.past_pause) == (False, (clock() - 18, clock()))
    await sums.forget_progress(yard.db, before=clock() + 1)
    (queued,) = await rows.queue(yard.db, await batches.lane_names(yard.db, batch.id))
    assert queued.past_pause is None


async def test_a_paused_batch_is_told_by_what_was_seen_before_whatever_the_asker_knows_of_limits(yard, clock):
    batch, _ = await paused_for(yard, clock, What.BATCH, 600)
    found = await yard.look(batch)
    assert (found.reason, found.foresight.seconds) == (Wait.PAUSED, None)
    assert found.work.seconds.likely == pytest.approx(344 / 20, rel=0.15)


async def test_of_calls_at_once_that_nobody_named_no_time_is_told(yard, clock):
    await yard.ended([clock() - 3_700 + n for n in range(20)], call_seconds=0.2)
    batch = await yard.batch(1_000)
    await yard.working()
    assert (await yard.look(batch)).reason is Wait.UNKNOWN
    yard.settings = settings_of(max_in_flight=4)
    assert (await yard.look(batch)).foresight.seconds.likely == pytest.approx(50)


# ---------------------------------------------------------------- what is in the way


async def test_deadlines(yard, clock):
    early = await yard.batch(1_000, deadline=clock() + 500)
    late = await yard.batch(1_000, deadline=clock() + 150, priority=-1)
    clock.advance(100)
    await yard.steadily(10, 100)
    holds, misses = (await yard.look(early)).foresight, (await yard.look(late)).foresight
    assert (holds.holds_deadline, holds.late_seconds) == (True, 0.0)
    assert misses.holds_deadline is False
    assert misses.late_seconds == pytest.approx(150, rel=0.15)


async def test_a_deadline_at_risk_is_held_before_others(yard, clock):
    batch = await yard.batch(1_000, deadline=clock() + 400)
    await yard.batch(100_000)
    clock.advance(100)
    await yard.steadily(10, 100)
    foresight = (await yard.look(batch)).foresight  # sharing with the other it would take 200 s
    assert (foresight.holds_deadline, foresight.late_seconds) == (True, 0.0)
    hurried = await yard.batch(1_000, deadline=clock() + 150)
    foresight = (await yard.look(hurried)).foresight
    assert (foresight.holds_deadline, foresight.seconds.likely) == (True, pytest.approx(100, rel=0.1))


async def test_reasons_why_it_does_not_go_on(yard, clock):
    batch = await yard.batch(1_000)
    assert (await yard.look(batch)).reason is Wait.NO_WORKER
    clock.advance(50)
    await yard.steadily(10, 50)
    (lane_id,) = await batches.lane_names(yard.db, batch.id)
    for what, id_ in ((What.BATCH, batch.id), (What.TENANT, batch.tenant_id), (What.LANE, lane_id), (What.ALL, 0)):
        await pauses.pause(yard.db, what, id_, now=clock())
        found = await yard.look(batch)
        assert (found.reason, found.foresight.seconds) == (Wait.PAUSED, None)
        await pauses.resume(yard.db, what, id_, now=clock())
    await lanes.halted(yard.db, lane_ids=[lane_id], reason="no such model")
    assert (await yard.look(batch)).reason is Wait.HALTED
    await lanes.resumed(yard.db, lane_ids=[lane_id])
    assert (await yard.look(batch)).reason is None
    await lanes.paused(yard.db, lane_id=lane_id, until=clock() + 300)
    assert (await yard.look(batch)).foresight.seconds.likely > 300
    await control.cancel(yard.db, batch_id=batch.id, abort=False, now=clock())
    cancelling = await batches.get(yard.db, batch.id)
    assert (await yard.look(cancelling)).reason is Wait.CANCELLING


async def test_a_lane_whose_upstream_no_worker_knows(yard, clock):
    batch = await yard.batch(1_000)
    (lane_id,) = await batches.lane_names(yard.db, batch.id)
    clock.advance(50)
    for others in ({}, {lane_id + 1: NOT_CONFIGURED}, {lane_id: "halted"}):
        worker_id = await workers.register(yard.db, name="w", now=clock())
        says = {lane_id: NOT_CONFIGURED, lane_id + 1: "requests"}
        await workers.heartbeat(yard.db, worker_id=worker_id, in_flight=0, now=clock(), waiting_for=says)
        assert (await yard.look(batch)).reason is Wait.NOT_SERVED
        other_id = await workers.register(yard.db, name="other", now=clock())
        await workers.heartbeat(yard.db, worker_id=other_id, in_flight=0, now=clock(), waiting_for=others)
        assert (await yard.look(batch)).reason is not Wait.NOT_SERVED
        for id_ in (worker_id, other_id):
            await workers.stopped(yard.db, worker_id=id_, now=clock())
    assert (await yard.look(batch)).reason is Wait.NO_WORKER


async def test_nothing_is_told_of_what_is_read_or_finished(yard, clock):
    file_id = await files.create(yard.db, filename="t.jsonl", purpose="batch", now=clock())
    read = await batches.create(yard.db, NewBatch(file_id=file_id, source="t", defaults="{}"), now=clock())
    done = await yard.batch(0)
    found = await outlook.of_batches(yard.db, yard.settings, [read, done], now=clock())
    assert {id_: each.reason for id_, each in found.items()} == {read.id: Wait.READING}


async def test_nothing_known_and_then_nothing_heard(yard, clock):
    await yard.working()
    batch = await yard.batch(1_000)
    assert (await yard.look(batch)).reason is Wait.UNKNOWN
    clock.advance(61)
    await yard.working(61)
    assert (await yard.look(batch)).reason is Wait.NO_ANSWERS


# ---------------------------------------------------------------- before it is made


async def test_a_batch_that_is_only_planned(yard, clock):
    await yard.batch(1_000)
    clock.advance(100)
    await yard.steadily(10, 100)
    yard.settings = settings_of(requests_per_minute=1_200)
    work = {"m": (500, 300.0), "new": (400, 300.0)}
    planned = Planned(work=work, tenant_id=1, deadline=clock() + 9)  # beyond help
    whole, each = await outlook.of_planned(yard.db, yard.settings, planned, now=clock())
    assert each["m"].standing.beside == 1_000
    assert each["m"].expected.seconds.likely == pytest.approx(100, rel=0.1)
    assert each["m"].expected.limited_by == "pace"
    assert (each["new"].expected.seconds.likely, each["new"].expected.limited_by) == (20.0, "requests_per_minute")
    assert whole.seconds.likely == each["m"].expected.seconds.likely
    assert (whole.holds_deadline, whole.late_seconds) == (False, pytest.approx(91, rel=0.2))
    assert [lane.model for lane in await lanes.read(yard.db)] == ["m"]  # and nothing is made of it


async def test_tokens_of_what_is_left_and_what_was_answered(mill):
    batch = await mill.batch(10)
    (lane_id,) = await batches.lane_names(mill.db, batch.id)
    worker = await mill.worker()
    for job in await mill.claim(worker, batch, 4):
        await mill.record(worker, mill.answered(job))
    assert await rows.loads(mill.db, batch.id) == {lane_id: Load(6, 60, 0, 6)}
    (spent,) = (await rows.spent(mill.db, batch.id)).values()
    assert (spent.answers, spent.prompt_tokens, spent.completion_tokens, spent.completion_squares) == (4, 40, 20, 100.0)
    assert await rows.prompt_tokens_each(mill.db, batch.id) == 10.0
    assert math.isclose((await rows.learned(mill.db, [lane_id]))[lane_id].completion_tokens_each, 5.0)
