"""Schedules fire: each fire one batch, at its time, as its policies say."""

import asyncio
import dataclasses
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import NotFound
from promptmill.handling import AfterCanary, Handling
from promptmill.intake.kept import KeptFile
from promptmill.store import admissions, batches, deciding, files, fires, purge, schedules
from promptmill.store.schedules import FireState
from promptmill.tables import file_parts, jobs
from promptmill.tables import files as file_rows
from tests.conftest import Clock
from tests.worker.timetable import FILLED_IN, PLAIN, Missed, Overlap, Timetable, at
from worker.fires import Fires

DUE, WAITING, FIRED, FAILED, SKIPPED = (
    FireState.DUE, FireState.WAITING, FireState.FIRED, FireState.FAILED, FireState.SKIPPED,
)  # fmt: skip


def minutes(*numbers: int) -> list[float]:
    """Of the morning on which the tests are."""
    return [at("2026-06-01 08:00") + 60 * n for n in numbers]


@pytest.fixture
def timetable(sqlite_db: Database, clock: Clock) -> Timetable:
    """For what does not depend on the kind of database."""
    clock.now = at("2026-06-01 08:00:30")
    return Timetable(sqlite_db, clock)


@pytest.fixture
def on_both(db: Database, clock: Clock) -> Timetable:
    clock.now = at("2026-06-01 08:00:30")
    return Timetable(db, clock)


async def test_each_fire_is_a_batch_with_its_lines_filled_in(on_both: Timetable):
    schedule = await on_both.add(cron="* * * * *", lines=[FILLED_IN, b"\n", PLAIN])
    await on_both.until(minutes(3)[0])
    first, second, third = await on_both.history(schedule)
    assert [fire.at for fire in (first, second, third)] == minutes(1, 2, 3)
    assert [fire.batch_state for fire in (first, second, third)] == ["in_progress"] * 3
    assert await on_both.lines(first.batch_id) == [("r-2026-06-01-1", "2026-06-01T08:01:00Z after "), ("a", "Hi")]
    assert await on_both.lines(third.batch_id) == [
        ("r-2026-06-01-3", "2026-06-01T08:03:00Z after 2026-06-01T08:02:00Z"), ("a", "Hi"),
    ]  # fmt: skip
    assert on_both.rung == 3
    batch = await batches.get(on_both.db, second.batch_id)
    copy = await files.by_id(on_both.db, batch.file_id)
    assert (copy.filename, copy.purpose, copy.status) == ("s-2026-06-01T08:02:00Z.jsonl", "batch", "processed")


async def test_a_batch_has_the_terms_of_its_schedule(timetable: Timetable):
    asked = Handling(weight=2.0, max_in_flight=3, canary=1, canary_then=AfterCanary.ASK, budget_tokens=9)
    schedule = await timetable.add(
        cron="@hourly", window="2h", handling=asked, metadata={"team": "news", "schedule": "mine"}
    )
    await timetable.until(at("2026-06-01 09:00"))
    (fire,) = await timetable.history(schedule)
    batch = await batches.get(timetable.db, fire.batch_id)
    assert batch.handling == asked
    assert batch.deadline == fire.carried_out_at + 7_200
    assert (batch.max_attempts, batch.completion_window, batch.tenant_id) == (3, "2h", schedule.tenant_id)
    assert batch.metadata == '{"schedule":"mine","fire_time":"2026-06-01T09:00:00Z","team":"news"}'
    assert batch.file_id == schedule.terms.file_id  # without templates nothing is copied


CLOCKS_CHANGE = [
    ("Europe/Berlin", "30 2 * * *", "2026-03-28 12:00", "29 03:00+02:00 30 02:30+02:00"),
    ("Europe/Berlin", "0 * * * *", "2026-03-29 00:30", "29 01:00+01:00 29 03:00+02:00 29 04:00+02:00"),
    ("Europe/Berlin", "30 2 * * *", "2026-10-24 12:00", "25 02:30+02:00 26 02:30+01:00"),
    ("Europe/Berlin", "0 * * * *", "2026-10-25 01:30", "25 02:00+02:00 25 02:00+01:00 25 03:00+01:00"),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03 12:00", "04 02:30+11:00 05 02:15+11:00"),
]


@pytest.mark.parametrize(("zone", "cron", "begin", "expected"), CLOCKS_CHANGE)
async def test_clocks_that_change(sqlite_db: Database, clock: Clock, zone: str, cron: str, begin: str, expected: str):
    clock.now = at(begin, zone)
    timetable = Timetable(sqlite_db, clock)
    schedule = await timetable.add(cron=cron, zone=zone, lines=[FILLED_IN])
    wanted = expected.split()
    days = [f"{day} {time}" for day, time in zip(wanted[::2], wanted[1::2], strict=True)]
    while len(await timetable.fired(schedule)) < len(days):
        await timetable.until(clock.now + 1_800, step=1_800)
    fired = await timetable.fired(schedule)
    assert [f"{datetime.fromtimestamp(each, ZoneInfo(zone)):%d} {_clock(each, zone)}" for each in fired] == days
    last = (await timetable.history(schedule))[-1]
    ((_, content),) = await timetable.lines(last.batch_id)
    assert content.startswith(datetime.fromtimestamp(fired[-1], ZoneInfo(zone)).isoformat())


def _clock(moment: float, zone: str) -> str:
    return (
        datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat()[11:16]
        + (datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat()[19:])
    )


@pytest.mark.parametrize(
    ("missed", "fired", "skipped"),
    [(Missed.SKIP, [60], [59]), (Missed.ONCE, [60], [59]), (Missed.ALL, [58, 59, 60], [57])],
)
async def test_what_was_missed(timetable: Timetable, clock: Clock, missed: Missed, fired: list, skipped: list):
    schedule = await timetable.add(cron="* * * * *", missed=missed, catch_up=3)
    clock.now = minutes(60)[0] + 20  # nobody was there; the last one is within grace
    await timetable.worker().all_due()
    assert await timetable.fired(schedule) == minutes(*fired)
    (left_out,) = [fire for fire in await timetable.history(schedule) if fire.state is SKIPPED]
    assert [left_out.at] == minutes(*skipped)
    assert f"so did {skipped[0] - 1} before it" in left_out.reason
    clock.now += 200  # and it goes on as if nothing had been: none is on time, so `skip` leaves the others out
    await timetable.worker().all_due()
    assert (await timetable.fired(schedule))[-1] == (minutes(63)[0])


async def test_a_year_without_anybody(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *")
    clock.now = at("2027-06-01 08:00:10")
    await timetable.worker().all_due()
    assert await timetable.fired(schedule) == [at("2027-06-01 08:00")]
    assert (await timetable.states(schedule)) == [SKIPPED, FIRED]


async def test_overlap_skip(timetable: Timetable):
    schedule = await timetable.add(cron="* * * * *", overlap=Overlap.SKIP)
    await timetable.until(minutes(3)[0])
    assert await timetable.states(schedule) == [FIRED, SKIPPED, SKIPPED]
    assert [fire.number for fire in await timetable.history(schedule)] == [1, None, None]
    await timetable.finish()
    await timetable.until(minutes(4)[0])
    assert await timetable.states(schedule) == [FIRED, SKIPPED, SKIPPED, FIRED]
    assert (await timetable.history(schedule))[-1].previous_at == minutes(1)[0]


async def test_overlap_queue(on_both: Timetable):
    schedule = await on_both.add(cron="* * * * *", overlap=Overlap.QUEUE, catch_up=2, lines=[FILLED_IN])
    await on_both.until(minutes(4)[0])
    assert await on_both.states(schedule) == [FIRED, WAITING, WAITING, SKIPPED]
    for done in range(1, 3):
        await on_both.finish()
        await on_both.until(minutes(4)[0] + done * 5, step=2)
        assert await on_both.states(schedule) == [FIRED] * (done + 1) + [WAITING] * (2 - done) + [SKIPPED]
    third = (await on_both.history(schedule))[2]
    assert await on_both.lines(third.batch_id) == [
        ("r-2026-06-01-3", "2026-06-01T08:03:00Z after 2026-06-01T08:02:00Z")
    ]


async def test_jitter_start_and_end(timetable: Timetable):
    schedule = await timetable.add(
        cron="* * * * *", jitter_seconds=50, starts_at=minutes(2)[0], ends_at=minutes(5)[0], lines=[FILLED_IN]
    )
    await timetable.until(minutes(6)[0], step=3)
    history = await timetable.history(schedule)
    assert [fire.at for fire in history] == minutes(2, 3, 4)
    late = [fire.carried_out_at - fire.at for fire in history]
    assert all(0 <= each <= 53 for each in late)
    assert len({round(each) for each in late}) > 1
    assert (await timetable.lines(history[0].batch_id))[0][1] == "2026-06-01T08:02:00Z after "
    assert (await schedules.get(timetable.db, schedule.id)).next_at is None


async def test_disabled_it_decides_nothing_and_enabled_it_makes_up_for_nothing(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *", missed=Missed.ALL, overlap=Overlap.QUEUE)
    await timetable.until(minutes(2)[0])
    assert await timetable.states(schedule) == [FIRED, WAITING]
    await schedules.disable(timetable.db, schedule.id, now=clock())
    await timetable.finish()
    await timetable.until(minutes(30)[0])
    await schedules.enable(timetable.db, schedule.id, now=clock())
    await timetable.until(minutes(31)[0])
    history = await timetable.history(schedule)
    assert [fire.at for fire in history] == minutes(1, 2, 31)
    assert [fire.state for fire in history] == [FIRED, SKIPPED, FIRED]
    assert history[1].reason == "the schedule was disabled"


async def test_run_now_obeys_nothing_and_changes_nothing(on_both: Timetable):
    schedule = await on_both.add(cron="* * * * *", is_enabled=False, overlap=Overlap.SKIP, lines=[FILLED_IN])
    first, second = await on_both.run_now(schedule), await on_both.run_now(schedule)
    assert (first.number, second.number, first.is_manual) == (1, 2, True)
    assert second.at == first.at + 0.001
    assert (await on_both.lines(second.batch_id))[0][0] == "r-2026-06-01-2"
    await schedules.enable(on_both.db, schedule.id, now=on_both.clock())
    await on_both.finish()
    await on_both.until(minutes(1)[0])
    assert [fire.number for fire in await on_both.history(schedule)] == [1, 2, 3]
    # On the minute there will be, or is, another one: it makes room.
    on_both.clock.now = minutes(2)[0]
    by_hand = await on_both.run_now(schedule)
    assert by_hand.at > minutes(2)[0]
    assert [fire.at for fire in await on_both.history(schedule)][-2:] == [minutes(2)[0], by_hand.at]


async def test_once_at_a_time(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(at=minutes(5)[0] + 0.5)
    now = await timetable.add("now", at=clock())
    await timetable.until(minutes(9)[0])
    assert await timetable.fired(schedule) == [minutes(5)[0] + 0.5]
    assert await timetable.fired(now) == [at("2026-06-01 08:00:30")]


async def test_changed_times_hold_from_now_on_and_no_fire_comes_twice(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *")
    await timetable.until(minutes(2)[0])
    other = schedule.when.__class__(id=schedule.public_id, cron="*/5 * * * *")
    await schedules.change(timetable.db, schedule.id, when=other, now=clock())
    await timetable.until(minutes(10)[0])
    assert await timetable.fired(schedule) == minutes(1, 2, 5, 10)
    clock.now = minutes(9)[0] + 30  # a clock that was put back
    await schedules.change(timetable.db, schedule.id, when=schedule.when, now=clock())
    await timetable.until(minutes(11)[0])
    assert await timetable.fired(schedule) == minutes(1, 2, 5, 10, 11)


async def test_an_end_that_is_put_off_brings_nothing_of_what_was_between(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *", missed=Missed.ALL, ends_at=minutes(2)[0] + 1)
    await timetable.until(minutes(9)[0])
    assert await timetable.fired(schedule) == minutes(1, 2)
    later = dataclasses.replace(schedule.when, ends_at=minutes(11)[0] + 1)
    await schedules.change(timetable.db, schedule.id, when=later, now=clock())
    await timetable.until(minutes(20)[0])
    assert await timetable.fired(schedule) == minutes(1, 2, 10, 11)


async def test_what_waits_goes_on_when_overlap_is_allowed(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *", overlap=Overlap.QUEUE)
    await timetable.until(minutes(4)[0])
    assert await timetable.states(schedule) == [FIRED, WAITING, WAITING, WAITING]
    allowed = dataclasses.replace(schedule.when, overlap=Overlap.ALLOW)
    await schedules.change(timetable.db, schedule.id, when=allowed, now=clock())
    await timetable.until(minutes(5)[0])
    assert await timetable.states(schedule) == [FIRED] * 5


async def test_one_that_has_much_to_make_up_for_does_not_keep_others_waiting(on_both: Timetable):
    first = await on_both.add("first", cron="* * * * *", missed=Missed.ALL, catch_up=1_000)
    on_both.clock.now = minutes(300)[0]
    second = await on_both.add("second", at=minutes(300)[0])
    for schedule in (first, second):
        await deciding.decide(on_both.db, schedule.id, now=on_both.clock())
    next_ones = await fires.left(on_both.db, now=on_both.clock())
    (theirs,) = await on_both.history(second)
    assert theirs.id in next_ones[:2]
    assert next_ones[0] == (await on_both.history(first))[0].id


async def test_a_schedule_is_named_by_what_tells_it_from_others(timetable: Timetable):
    schedule = await timetable.add("nightly", cron="* * * * *")
    for reference in ("nightly", schedule.public_id, schedule.public_id[:12]):
        assert (await schedules.find(timetable.db, reference)).id == schedule.id
    for reference in ("", "s", "sched_", "night"):
        with pytest.raises(NotFound):
            await schedules.find(timetable.db, reference)


async def test_a_copy_that_lost_its_lines_on_the_way_is_no_batch(timetable: Timetable):
    schedule = await timetable.add(cron="* * * * *", lines=[FILLED_IN, PLAIN])
    async with timetable.db.write() as connection:
        await connection.execute(sa.delete(file_parts).where(file_parts.c.part == 1))
    await timetable.until(minutes(1)[0])
    (fire,) = await timetable.history(schedule)
    assert (fire.state, fire.reason) == (FAILED, "its file was removed while the lines were filled in")


async def test_lines_that_a_schedule_brought_go_some_time_after_it(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *")
    clock.advance(31 * 86_400.0)
    assert await purge.purge_files(timetable.db, clock()) == 0
    await schedules.remove(timetable.db, schedule.id, now=clock())
    assert await purge.purge_files(timetable.db, clock()) == 1


async def test_many_at_the_same_moment(on_both: Timetable):
    made = [await on_both.add(f"s{n}", cron="* * * * *", lines=[FILLED_IN] if n else [PLAIN]) for n in range(2)]
    workers = [on_both.worker(f"w{n}") for n in range(6)]
    for minute in (1, 2, 3):
        on_both.clock.now = minutes(minute)[0]
        await asyncio.gather(*(worker.all_due() for worker in workers))
    for schedule in made:
        assert await on_both.fired(schedule) == minutes(1, 2, 3)
    assert await on_both.count_batches() == 6
    async with on_both.db.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(jobs))).scalar_one() == 6
        hidden = sa.select(file_rows.c.id).where(file_rows.c.purpose == "_incoming")
        assert (await connection.execute(hidden)).all() == []


async def test_who_dies_between_the_copy_and_the_batch_leaves_a_fire_that_another_carries_out(on_both: Timetable):
    schedule = await on_both.add(cron="* * * * *", lines=[FILLED_IN])
    on_both.clock.now = minutes(1)[0]
    (schedule_id,) = await deciding.to_decide(on_both.db, now=on_both.clock())
    await deciding.decide(on_both.db, schedule_id, now=on_both.clock())
    (fire_id,) = await fires.left(on_both.db, now=on_both.clock())
    assert await fires.take(on_both.db, fire_id=fire_id, holder="dead", now=on_both.clock())
    orphan = await KeptFile.begin(on_both.db, on_both.settings, filename="s.jsonl", tenant_id=1, clock=on_both.clock)
    await orphan.feed(PLAIN)
    await orphan.finish()

    await on_both.worker().all_due()
    assert await on_both.states(schedule) == [DUE]  # it may be alive
    on_both.clock.advance(fires.HELD_SECONDS)
    await on_both.worker().all_due()
    assert await on_both.states(schedule) == [FIRED]
    with pytest.raises(fires.Lost):
        async with on_both.db.write() as connection:
            await fires.hold(connection, fire_id=fire_id, holder="dead", now=on_both.clock())
    on_both.clock.advance(49 * 3_600)
    await purge.purge_files(on_both.db, on_both.clock())
    async with on_both.db.read() as connection:
        left = sa.select(file_parts.c.part).where(file_parts.c.file_id == orphan.file_id)
        assert (await connection.execute(left)).all() == []


async def test_who_dies_while_lines_are_admitted_leaves_a_batch_that_another_admits(on_both: Timetable):
    schedule = await on_both.add(cron="* * * * *")
    on_both.clock.now = minutes(1)[0]
    dying = on_both.worker("dying")

    async def dies(_batch_id: int) -> None:
        raise asyncio.CancelledError

    dying._read_in = dies  # type: ignore[method-assign]
    await dying.all_due()
    (fire,) = await on_both.history(schedule)
    assert fire.batch_state == "validating"
    other = on_both.worker("other")
    await other.all_due()
    assert (await on_both.history(schedule))[0].batch_state == "validating"
    on_both.clock.advance(admissions.HELD_SECONDS)
    await other.all_due()
    assert (await on_both.history(schedule))[0].batch_state == "in_progress"


async def test_who_stops_leaves_its_work_at_once(timetable: Timetable):
    await timetable.add(cron="* * * * *")
    timetable.clock.now = minutes(1)[0]
    stopping = timetable.worker("stopping")
    reading = asyncio.Event()

    async def reads(_batch_id: int) -> None:
        reading.set()
        await asyncio.Event().wait()

    stopping._read_in = reads  # type: ignore[method-assign]
    task = asyncio.create_task(stopping.run())
    await reading.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(await admissions.left(timetable.db, now=timetable.clock(), made_by_schedules=True)) == 1


async def test_a_removed_schedule_fires_no_more_and_its_name_is_free(on_both: Timetable, clock: Clock):
    schedule = await on_both.add(cron="* * * * *")
    clock.now = minutes(1)[0]
    await deciding.decide(on_both.db, schedule.id, now=clock())
    await schedules.remove(on_both.db, schedule.id, now=clock())
    await on_both.until(minutes(5)[0])
    assert await on_both.states(schedule) == [SKIPPED]
    assert await on_both.count_batches() == 0
    await on_both.add(cron="* * * * *")
    with pytest.raises(schedules.NameTaken):
        await on_both.add(cron="* * * * *")


async def test_a_file_that_a_schedule_needs_is_not_purged(timetable: Timetable, clock: Clock):
    schedule = await timetable.add(cron="* * * * *")
    await files.delete(timetable.db, schedule.terms.file_id, now=clock())
    await purge.purge_files(timetable.db, clock())
    await timetable.until(minutes(1)[0])
    assert [fire.batch_state for fire in await timetable.history(schedule)] == ["in_progress"]
    await timetable.finish()
    await schedules.remove(timetable.db, schedule.id, now=clock())
    assert await purge.purge_files(timetable.db, clock()) == 1


async def test_a_line_that_is_too_long_filled_in_fails_the_fire(timetable: Timetable):
    schedule = await timetable.add(cron="* * * * *", lines=[FILLED_IN])
    worker = Fires(
        timetable.db, timetable.settings.__class__(**{**_fields(timetable.settings), "max_upload_line_bytes": 100}),
        owner="w", ring=timetable._ring, clock=timetable.clock,
    )  # fmt: skip
    timetable.clock.now = minutes(1)[0]
    await worker.all_due()
    (fire,) = await timetable.history(schedule)
    assert (fire.state, fire.batch_id) == (FAILED, None)
    assert "line 1: the line has more than 100 bytes" in fire.reason


def _fields(settings: object) -> dict:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


async def test_a_schedule_that_cannot_be_decided_does_not_stop_others(timetable: Timetable, caplog):
    broken = await timetable.add("broken", cron="* * * * *")
    sound = await timetable.add("sound", cron="* * * * *")
    async with timetable.db.write() as connection:
        await schedules.update(connection, broken.id, {"zone": "Atlantis/Poseidonis"})
    await timetable.until(minutes(2)[0])
    assert await timetable.fired(sound) == minutes(1, 2)
    assert "'Atlantis/Poseidonis' is no time zone" in caplog.text
    assert sum("cannot be decided" in line for line in caplog.text.splitlines()) == 2  # not at every look


async def test_looks_go_by_their_indices(sqlite_db: Database):
    """A schedule may have half a million fires, and it is looked for due ones twice a second."""
    timetable = Timetable(sqlite_db, Clock())
    asked: list[str] = []
    sa.event.listen(sqlite_db.engine.sync_engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    await timetable.add(cron="* * * * *", overlap=Overlap.QUEUE)
    await timetable.until(timetable.clock() + 180)
    async with sqlite_db.read() as connection:
        for query in {each for each in asked if each.startswith("SELECT") and "schedule_fires" in each}:
            plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", (1,) * query.count("?"))).all()
            scanned = [row[3] for row in plan if "SCAN promptmill_schedule" in row[3]]
            assert all("USING INDEX ix_promptmill_schedule_fires_open" in step for step in scanned), (query, plan)
