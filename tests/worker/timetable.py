"""Schedules over a real database, workers that fire them at times a test says, and what came of it."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.handling import Handling
from promptmill.intake import scheduling
from promptmill.job import BatchState
from promptmill.request import Defaults
from promptmill.schedules import Missed, Overlap, Schedule
from promptmill.settings import Settings, load
from promptmill.store import deciding, fires, schedules
from promptmill.store.fires import FireRow
from promptmill.store.schedules import FireState, ScheduleRow, Terms
from promptmill.tables import batches, file_parts, jobs
from worker.fires import Fires

PLAIN = b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}\n'
FILLED_IN = (
    b'{"custom_id": "r-{{ date }}-{{ number }}", "body": {"model": "m", "messages": '
    b'[{"role": "user", "content": "{{ fire_time }} after {{previous_fire_time}}"}]}}\n'
)


def at(text: str, zone: str = "UTC") -> float:
    """Unix seconds of a wall clock."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@dataclass
class Timetable:
    """Schedules, and workers that carry them out."""

    db: Database
    clock: Callable[[], float]
    settings: Settings = field(default_factory=lambda: load({}))
    rung: int = 0

    async def add(
        self,
        name: str = "s",
        *,
        lines: Iterable[bytes] = (PLAIN,),
        cron: str | None = None,
        is_enabled: bool = True,
        window: str = "24h",
        handling: Handling | None = None,
        metadata: dict[str, str] | None = None,
        **timing: Any,
    ) -> ScheduleRow:
        """A new schedule of these lines."""
        when = Schedule(id=schedules.new_id(), cron=cron, **timing)
        file_id = await scheduling.keep_lines(
            self.db, self.settings, list(lines), name=f"{name}.jsonl", defaults=Defaults(), tenant_id=1,
            clock=self.clock,
        )  # fmt: skip
        terms = Terms(
            file_id=file_id, source=f"{name}.jsonl", has_templates=False, defaults="{}",
            handling=handling or Handling(), priority=0, completion_window=window, max_attempts=3,
            metadata=None if metadata is None else json.dumps(metadata),
        )  # fmt: skip
        terms = await scheduling.looked_at(
            self.db, self.settings, name=name, when=when, terms=terms, tenant_id=1, now=self.clock()
        )
        return await schedules.create(
            self.db, name=name, when=when, terms=terms, now=self.clock(), is_enabled=is_enabled
        )

    def worker(self, name: str = "w") -> Fires:
        """One that fires."""
        return Fires(self.db, self.settings, owner=name, ring=self._ring, clock=self.clock)

    async def _ring(self) -> None:
        self.rung += 1

    async def until(self, moment: float, *, step: float = 15.0) -> None:
        """A worker looks now and then until it is this late."""
        worker = self.worker()
        while self.clock.now < moment:
            self.clock.now = min(moment, self.clock.now + step)
            await worker.all_due()

    async def run_now(self, schedule: ScheduleRow) -> FireRow:
        """As somebody asks for it, and a worker carries it out."""
        fire_id = await deciding.run_now(self.db, schedule.id, holder="nobody", now=self.clock())
        await fires.release(self.db, holder="nobody")
        await self.worker().all_due()
        return await fires.get(self.db, fire_id)

    async def history(self, schedule: ScheduleRow) -> list[FireRow]:
        """Its fires, in the order of their times."""
        return (await fires.history(self.db, schedule.id))[::-1]

    async def fired(self, schedule: ScheduleRow) -> list[float]:
        """Nominal times of those that have a batch."""
        return [fire.at for fire in await self.history(schedule) if fire.state is FireState.FIRED]

    async def states(self, schedule: ScheduleRow) -> list[FireState]:
        """Of all its fires."""
        return [fire.state for fire in await self.history(schedule)]

    async def lines(self, batch_id: int) -> list[tuple[str | None, Any]]:
        """(custom_id, content) of the batch's jobs."""
        async with self.db.read() as connection:
            rows = await connection.execute(
                sa.select(file_parts.c.custom_id, file_parts.c.data)
                .join(jobs, sa.and_(jobs.c.file_id == file_parts.c.file_id, jobs.c.part == file_parts.c.part))
                .where(jobs.c.batch_id == batch_id)
                .order_by(jobs.c.position)
            )
            return [(row[0], json.loads(row[1])["body"]["messages"][0]["content"]) for row in rows]

    async def finish(self, *batch_ids: int | None) -> None:
        """These batches are done; without any, all of them."""
        statement = sa.update(batches).values(state=BatchState.COMPLETED, finished_at=self.clock())
        if batch_ids:
            statement = statement.where(batches.c.id.in_(batch_ids))
        async with self.db.write() as connection:
            await connection.execute(statement)

    async def count_batches(self) -> int:
        """All there are."""
        async with self.db.read() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(batches))).scalar_one())


__all__ = ["FILLED_IN", "PLAIN", "Missed", "Overlap", "Timetable", "at"]
