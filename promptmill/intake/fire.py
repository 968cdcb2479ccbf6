"""A due fire becomes a batch: one, whoever carries it out, and however often somebody dies on the way.

Without templates the batch shares the schedule's file. With them the file is copied first, each line filled in for this
fire; nobody sees the copy until, in one transaction, the batch is made, the copy is its file, and the fire is fired. A
process that dies before that leaves a due fire, and at most a hidden file, which is purged like an upload that never
ended. Afterwards the batch's lines are admitted like those of any other.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill import templates
from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.errors import InputError, NotFound, UsageError
from promptmill.handling import deadline
from promptmill.intake.kept import Kept, KeptFile
from promptmill.job import BatchState
from promptmill.schedules import time_zone
from promptmill.settings import Settings
from promptmill.store import admissions, batches, files, fires, schedules
from promptmill.store.batches import NewBatch
from promptmill.store.files import FileStatus
from promptmill.store.fires import RUN_KEY, FireRow, Lost
from promptmill.store.schedules import ScheduleRow
from promptmill.tables import files as file_rows

#: Copies go when uploaded files of requests do, unless a batch that is not finished needs them.
_COPY_SECONDS: Final = 30 * 86_400.0
#: It is said so often that the fire is still held.
_HOLD_SECONDS: Final = 5.0
#: The event loop is everybody's.
_TURN_SECONDS: Final = 0.003
_LARGE_BYTES: Final = 256 * 1024


async def carry_out(
    db: Database, settings: Settings, fire_id: int, *, holder: str, clock: Callable[[], float]
) -> int | None:
    """Make the fire's batch, which `holder` then has to admit; returns its id. None: somebody else carries the fire
    out, or did; or no batch can be made of it, and it has failed."""
    if not await fires.take(db, fire_id=fire_id, holder=holder, now=clock()):
        return None
    fire = await fires.get(db, fire_id)
    with suppress(Lost):
        try:
            schedule = await schedules.get(db, fire.schedule_id)
            return await _Carrying(db, settings, schedule, fire, holder, clock).to_its_batch()
        except (NotFound, UsageError) as error:
            reason = str(error.errors[0]) if isinstance(error, InputError) else str(error)
            await fires.failed(db, fire_id=fire_id, holder=holder, reason=reason, now=clock())
    return None


def filled(schedule: ScheduleRow, fire: FireRow) -> templates.Fire:
    """What templates are filled in with."""
    return templates.Fire(
        schedule=schedule.name, at=fire.at, zone=time_zone(schedule.when.zone), number=fire.number or 1,
        previous_at=fire.previous_at,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Carrying:
    """One fire in this process's hands."""

    db: Database
    settings: Settings
    schedule: ScheduleRow
    fire: FireRow
    holder: str
    clock: Callable[[], float]

    async def to_its_batch(self) -> int:
        """All of it. Raises Lost; NotFound and UsageError where no batch can be made."""
        if not self.schedule.terms.has_templates:
            async with self.db.write() as connection:
                return await self._fired(connection, self.schedule.terms.file_id)
        copy = await KeptFile.begin(
            self.db, self.settings, filename=self._name(), tenant_id=self.schedule.tenant_id, clock=self.clock
        )
        async with copy.or_nothing():
            await self._fill(copy)
            kept = await copy.finish()
            async with self.db.write() as connection:
                await self._show(connection, kept)
                return await self._fired(connection, copy.file_id)

    async def _fill(self, copy: KeptFile) -> None:
        """Every line of the schedule's file, as it is for this fire."""
        known = filled(self.schedule, self.fire)
        turn_began, said_at, parts = time.perf_counter(), time.monotonic(), 0
        async for group in admissions.lines(self.db, self.schedule.terms.file_id):
            parts += len(group)
            for _, _, encoding, data in group:
                if time.perf_counter() - turn_began > _TURN_SECONDS:
                    await asyncio.sleep(0)
                    turn_began = time.perf_counter()
                line = unpack(encoding, data)
                large = len(line) > _LARGE_BYTES
                text = (
                    await asyncio.to_thread(templates.render, line, known) if large else templates.render(line, known)
                )
                await copy.feed(text)
            if time.monotonic() - said_at >= _HOLD_SECONDS:
                async with self.db.write() as connection:
                    await fires.hold(connection, fire_id=self.fire.id, holder=self.holder, now=self.clock())
                said_at = time.monotonic()
        original = await files.by_id(self.db, self.schedule.terms.file_id)
        if original.parts != parts:  # the schedule has another one by now, and nothing keeps this one
            raise NotFound("its file was removed while the lines were filled in")

    async def _show(self, connection: AsyncConnection, kept: Kept) -> None:
        """The copy is a file like others from now on."""
        shown = {
            "purpose": "batch", "status": FileStatus.PROCESSED.value, "bytes": kept.size_bytes, "parts": kept.parts,
            "expires_at": self.clock() + _COPY_SECONDS,
        }  # fmt: skip
        await connection.execute(sa.update(file_rows).where(file_rows.c.id == kept.file_id).values(shown))

    async def _fired(self, connection: AsyncConnection, file_id: int) -> int:
        now, terms = self.clock(), self.schedule.terms
        # The fire first: it is locked from then on, so whoever else carries it out waits, and has lost it.
        await fires.hold(connection, fire_id=self.fire.id, holder=self.holder, now=now)
        new = NewBatch(
            file_id=file_id,
            source=terms.source if file_id == terms.file_id else self._name(),
            defaults=terms.defaults,
            run_key=f"{RUN_KEY}{self.schedule.public_id}:{self.fire.at:.3f}",
            priority=terms.priority,
            deadline=deadline(terms.completion_window, made_at=now, not_before=None),
            max_attempts=terms.max_attempts,
            tenant_id=self.schedule.tenant_id,
            dialect=terms.dialect,
            endpoint=terms.endpoint,
            completion_window=terms.completion_window,
            metadata=self._metadata(),
            handling=terms.handling,
            validator=self.holder,
            validator_until=now + admissions.HELD_SECONDS,
        )
        batch = await batches.insert_batch(connection, new, state=BatchState.VALIDATING, now=now)
        await fires.fired(connection, fire_id=self.fire.id, holder=self.holder, batch_id=batch.id, now=now)
        return batch.id

    def _name(self) -> str:
        """Of the copy: the file's, with the fire's time."""
        stem = PurePath(self.schedule.terms.source).name.removesuffix(".jsonl")
        return f"{stem}-{templates.NAMES['fire_time'](filled(self.schedule, self.fire))}.jsonl"

    def _metadata(self) -> str:
        """The schedule's, and by which fire the batch was made, unless its producer uses these names."""
        given = msgspec.json.decode(self.schedule.terms.metadata or "{}", type=dict[str, str])
        made_by = {
            "schedule": self.schedule.name,
            "fire_time": templates.NAMES["fire_time"](filled(self.schedule, self.fire)),
        }
        return msgspec.json.encode({**made_by, **given}).decode()
