"""Five hours of schedules with workers and clocks that are killed at random: every due fire makes exactly one batch.

The time is told, not waited for. What runs here is what drains and the maint task run; a kill ends it wherever it is
waiting, in the middle of a transaction too, and nothing of it is tidied up.
"""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import BatchState
from promptmill.store.schedules import FireState, ScheduleRow
from promptmill.tables import batches, schedule_fires
from tests.conftest import Clock
from tests.worker.timetable import FILLED_IN, PLAIN, Missed, Overlap, Timetable, at
from worker.fires import Fires

BEGIN = at("2026-03-29 00:00:30", "Europe/Berlin")  # the night in which the clocks go forward
HOURS = 5
#: Seconds from look to look.
STEP = (10.0, 80.0)
KILLED = 0.2


@dataclass
class Chaos:
    """Processes that die, and are started again."""

    timetable: Timetable
    dice: random.Random
    kills: int = 0
    started: int = 0
    alive: list[Fires] = field(default_factory=list)

    def start(self) -> Fires:
        self.started += 1
        return self.timetable.worker(f"p{self.started}")

    async def look(self, number: int) -> None:
        """One of them looks; perhaps it dies on the way, after so many turns of the event loop."""
        process = self.alive[number]
        work = asyncio.create_task(process.all_due())
        if self.dice.random() < KILLED:
            for _ in range(self.dice.randrange(1, 60)):
                await asyncio.sleep(0)
            if not work.done():
                self.kills += 1
                for task in (work, *process._at_work.values()):
                    task.cancel()
                self.alive[number] = self.start()
        with suppress(asyncio.CancelledError):
            await work


async def test_every_due_fire_makes_one_batch(db: Database, clock: Clock):
    clock.now = BEGIN
    timetable = Timetable(db, clock)
    chaos = Chaos(timetable, random.Random(5))  # noqa: S311 - dice, not secrets
    each_minute = await timetable.add("each minute", cron="* * * * *", missed=Missed.ALL, ends_at=BEGIN + 3_600)
    filled_in = await timetable.add(
        "filled in", cron="*/7 * * * *", zone="Europe/Berlin", lines=[FILLED_IN, PLAIN], missed=Missed.ALL,
        jitter_seconds=40,
    )  # fmt: skip
    queued = await timetable.add("queued", cron="*/20 * * * *", overlap=Overlap.QUEUE, missed=Missed.ALL)
    skipped = await timetable.add("skipped", cron="*/15 * * * *", overlap=Overlap.SKIP, missed=Missed.ALL)
    nightly = await timetable.add("nightly", cron="30 2 * * *", zone="Europe/Berlin", missed=Missed.ALL)

    chaos.alive = [chaos.start() for _ in range(5)]  # two that beat asks, three drains
    while clock.now < BEGIN + HOURS * 3_600:
        clock.advance(chaos.dice.uniform(*STEP))
        looking = chaos.dice.sample(range(5), chaos.dice.randrange(1, 4))
        await asyncio.gather(*(chaos.look(number) for number in looking))
        if chaos.dice.random() < 0.05:
            await _finish_some(timetable)
    for _ in range(15):  # what the dead have held is held no more; what waits has its turn
        clock.advance(25.0)
        await _finish_some(timetable)
        await timetable.worker("last").all_due()

    assert chaos.kills > 50
    await _check_each_fire_has_one_batch(timetable, each_minute, filled_in, queued, skipped, nightly)
    # `each minute` is one that nothing may hold up.
    minutes = [fire.at for fire in await timetable.history(each_minute)]
    assert minutes == [BEGIN + 30 + 60 * n for n in range(len(minutes))]
    assert len(minutes) == 60
    assert await timetable.fired(nightly) == [at("2026-03-29 03:00", "Europe/Berlin")]
    assert FireState.WAITING not in await timetable.states(queued)
    assert FireState.SKIPPED in await timetable.states(skipped)
    await _check_lines(timetable, filled_in)


async def _finish_some(timetable: Timetable) -> None:
    statement = sa.update(batches).where(batches.c.state == BatchState.IN_PROGRESS)
    async with timetable.db.write() as connection:
        await connection.execute(statement.values(state=BatchState.COMPLETED, finished_at=timetable.clock()))


async def _check_each_fire_has_one_batch(timetable: Timetable, *rows: ScheduleRow) -> None:
    async with timetable.db.read() as connection:
        fires = (await connection.execute(sa.select(schedule_fires))).all()
        made = Counter((await connection.execute(sa.select(batches.c.run_key))).scalars())
    names = {row.id: row.public_id for row in rows}
    due = {f"fire:{names[fire.schedule_id]}:{fire.at:.3f}" for fire in fires if fire.state == FireState.FIRED}
    assert made == dict.fromkeys(due, 1)
    assert {fire.state for fire in fires} <= {FireState.FIRED, FireState.SKIPPED, FireState.DUE}
    for row in rows:
        numbers = [fire.number for fire in await timetable.history(row) if fire.number is not None]
        assert numbers == list(range(1, len(numbers) + 1))


async def _check_lines(timetable: Timetable, schedule: ScheduleRow) -> None:
    history = await timetable.history(schedule)
    previous = ""
    for number, fire in enumerate(history, 1):
        if fire.batch_state is BatchState.VALIDATING:
            continue
        (custom_id, content), (other, _) = await timetable.lines(fire.batch_id)
        now, _, before = content.partition(" after ")
        assert (custom_id, other, before) == (f"r-{now[:10]}-{number}", "a", previous)
        previous = now
    assert len(history) >= HOURS * 60 / 7 - 2


@pytest.mark.parametrize("seed", range(3))
async def test_a_fire_that_is_killed_again_and_again(sqlite_db: Database, clock: Clock, seed: int):
    clock.now = BEGIN
    timetable = Timetable(sqlite_db, clock)
    schedule = await timetable.add(cron="@hourly", lines=[FILLED_IN, PLAIN])
    chaos = Chaos(timetable, random.Random(seed))  # noqa: S311 - dice, not secrets
    clock.now = BEGIN + 3_570
    for turns in range(1, 60):
        process = chaos.start()
        work = asyncio.create_task(process.all_due())
        for _ in range(turns * (seed + 1)):
            await asyncio.sleep(0)
        for task in (work, *process._at_work.values()):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await work
        clock.advance(21.0)
    await timetable.worker("last").all_due()
    (fire, *_) = await timetable.history(schedule)
    assert fire.batch_state is BatchState.IN_PROGRESS
    assert [name for name, _ in await timetable.lines(fire.batch_id)] == ["r-2026-03-29-1", "a"]
