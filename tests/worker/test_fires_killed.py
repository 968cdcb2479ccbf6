"""Five hours of schedules with two beats and three workers, killed at random: every due fire makes exactly one batch.

The time is told, not waited for. The processes are real and so are their deaths: SIGKILL at any moment, in the middle
of a transaction too.
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

import sqlalchemy as sa

from promptmill import schedules as rule
from promptmill.engine import Database
from promptmill.job import BatchState
from promptmill.store.schedules import FireState, ScheduleRow
from promptmill.tables import batches, jobs, schedule_fires
from tests.conftest import Clock
from tests.worker.firing_process import FiringProcess
from tests.worker.timetable import FILLED_IN, Missed, Overlap, Timetable, at

BEGIN = at("2026-03-29 00:00:30", "Europe/Berlin")  # the night in which the clocks go forward
END = BEGIN + 5 * 3_600
#: Seconds from look to look, as the clock has it.
STEP = (20.0, 140.0)
#: So often somebody dies, and so many seconds after it was told to look, at most.
KILLED, WITHIN = 0.6, 0.12
#: A copy takes so many lines, so that there is time to die in it.
LINES = 120


@dataclass
class Chaos:
    """Two that beat asks and three drains; whoever dies is replaced."""

    timetable: Timetable
    database_url: str
    dice: random.Random
    started: int = 0
    kills: int = 0
    left_behind: int = 0  # fires and batches that the dead had in their hands
    alive: list[FiringProcess] = field(default_factory=list)

    def start(self, *, is_beat: bool) -> FiringProcess:
        self.started += 1
        return FiringProcess(f"p{self.started}", database_url=self.database_url, is_beat=is_beat)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.alive = [self.start(is_beat=number < 2) for number in range(5)]
        try:
            yield
        finally:
            for process in self.alive:
                process.kill()

    async def look(self, looking: list[int], *, kill: bool) -> None:
        """These look, all at once; perhaps one of them does not live to see the end."""
        for number in looking:
            self.alive[number].tell(self.timetable.clock())
        if kill:
            victim = self.dice.choice(looking)
            if not self.alive[victim].done(self.dice.uniform(0.0, WITHIN)):
                await self._kill(victim)
            looking.remove(victim)
        for number in looking:
            assert self.alive[number].done(), f"{self.alive[number].name} is stuck"

    async def _kill(self, number: int) -> None:
        dead = self.alive[number]
        dead.kill()
        self.kills += 1
        self.alive[number] = self.start(is_beat=dead.is_beat)
        now = self.timetable.clock()
        held = sa.select(schedule_fires.c.id).where(
            schedule_fires.c.state == FireState.DUE, schedule_fires.c.holder.startswith(f"{dead.name}:"),
            schedule_fires.c.holder_until > now,
        )  # fmt: skip
        reading = sa.select(batches.c.id).where(
            batches.c.state == BatchState.VALIDATING, batches.c.validator.startswith(f"{dead.name}:")
        )
        async with self.timetable.db.read() as connection:
            for what in (held, reading):
                self.left_behind += len((await connection.execute(what)).all())


async def test_every_due_fire_makes_one_batch(db: Database, clock: Clock):
    clock.now = BEGIN
    timetable = Timetable(db, clock)
    chaos = Chaos(timetable, db.engine.url.render_as_string(hide_password=False), random.Random(5))  # noqa: S311
    always = {"missed": Missed.ALL, "catch_up": 10_000, "ends_at": END}
    many = [FILLED_IN, *(FILLED_IN.replace(b"r-", b"%d-" % n) for n in range(LINES))]
    each_minute = await timetable.add("each minute", cron="* * * * *", **always)
    filled_in = await timetable.add(
        "filled in", cron="*/7 * * * *", zone="Europe/Berlin", lines=many, jitter_seconds=40, **always
    )
    queued = await timetable.add("queued", cron="*/20 * * * *", overlap=Overlap.QUEUE, lines=[FILLED_IN], **always)
    skipped = await timetable.add("skipped", cron="*/15 * * * *", overlap=Overlap.SKIP, **always)
    nightly = await timetable.add("nightly", cron="30 2 * * *", zone="Europe/Berlin", lines=[FILLED_IN], **always)
    every = [each_minute, filled_in, queued, skipped, nightly]

    with chaos.running():
        while clock.now < END:
            clock.advance(chaos.dice.uniform(*STEP))
            looking = chaos.dice.sample(range(5), chaos.dice.randrange(1, 4))
            await chaos.look(looking, kill=chaos.dice.random() < KILLED)
            if chaos.dice.random() < 0.1:
                await _finish_all(timetable)
        for _ in range(200):  # what the dead have held is held no more; what waits has its turn
            clock.advance(25.0)
            await chaos.look(list(range(5)), kill=False)
            await _finish_all(timetable)
            if not await _open_fires(timetable):
                break

    assert chaos.kills >= 30
    assert chaos.left_behind >= 10
    for schedule in every:
        await _check_every_fire(timetable, schedule)
    await _check_one_batch_each(timetable, every)
    assert await timetable.fired(nightly) == [at("2026-03-29 03:00", "Europe/Berlin")]
    await _check_lines(timetable, filled_in, LINES + 1)
    await _check_lines(timetable, queued, 1)


async def _finish_all(timetable: Timetable) -> None:
    """Whatever was read in is done."""
    statement = sa.update(batches).where(batches.c.state == BatchState.IN_PROGRESS)
    async with timetable.db.write() as connection:
        await connection.execute(statement.values(state=BatchState.COMPLETED, finished_at=timetable.clock()))


async def _open_fires(timetable: Timetable) -> int:
    """Fires without an end, and batches that nobody has read in."""
    still = sa.select(schedule_fires.c.id).where(schedule_fires.c.state.in_([FireState.DUE, FireState.WAITING]))
    unread = sa.select(batches.c.id).where(batches.c.state == BatchState.VALIDATING)
    async with timetable.db.read() as connection:
        return sum([len((await connection.execute(what)).all()) for what in (still, unread)])


async def _check_every_fire(timetable: Timetable, schedule: ScheduleRow) -> None:
    """One for each of its times, none else; all are carried out, but for what its overlap leaves out."""
    history = await timetable.history(schedule)
    assert [fire.at for fire in history] == list(takewhile(lambda t: t < END, rule.fires(schedule.when, after=BEGIN)))
    states = Counter(fire.state for fire in history)
    if schedule.when.overlap is Overlap.SKIP:
        assert states.keys() == {FireState.FIRED, FireState.SKIPPED}
    else:
        assert states.keys() == {FireState.FIRED}
    numbers = [fire.number for fire in history if fire.number is not None]
    assert numbers == list(range(1, states[FireState.FIRED] + 1))
    assert {fire.batch_state for fire in history if fire.state is FireState.FIRED} == {BatchState.COMPLETED}


async def _check_one_batch_each(timetable: Timetable, every: list[ScheduleRow]) -> None:
    async with timetable.db.read() as connection:
        made = Counter((await connection.execute(sa.select(batches.c.run_key))).scalars())
    due = [f"fire:{schedule.public_id}:{t:.3f}" for schedule in every for t in await timetable.fired(schedule)]
    assert made == dict.fromkeys(due, 1)


async def _check_lines(timetable: Timetable, schedule: ScheduleRow, count: int) -> None:
    """Each line is there once, filled in for its fire."""
    previous = ""
    counted = sa.select(jobs.c.batch_id, sa.func.count(), sa.func.count(jobs.c.position.distinct()))
    async with timetable.db.read() as connection:
        lines = {batch: tuple(counts) for batch, *counts in await connection.execute(counted.group_by(jobs.c.batch_id))}
    for number, fire in enumerate(await timetable.history(schedule), 1):
        assert lines[fire.batch_id] == (count, count)
        (custom_id, content) = (await timetable.lines(fire.batch_id))[0]
        now, _, before = content.partition(" after ")
        assert (custom_id, before) == (f"r-{now[:10]}-{number}", previous)
        previous = now
