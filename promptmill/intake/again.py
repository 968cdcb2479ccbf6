"""Finished jobs start again because somebody asks for it: their lines are checked anew, and their results taken back.

The ledger keeps the earlier attempts, under the epochs that they had; a job goes on from there with the same id, and
has all of its tries again. A line that was skipped as bad never was a job: where it is good now (its model has an
upstream by now), it becomes one.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.errors import LineError, NotNow
from promptmill.intake.append import OWN_VIEW
from promptmill.intake.checker import Checker
from promptmill.intake.rows import JOB_COLUMNS, Row, job_row
from promptmill.job import TRANSITIONS, BatchState, State
from promptmill.jsonl import InputFormat, Line, detect_format
from promptmill.request import Defaults, Form, ParsedLine
from promptmill.settings import Settings
from promptmill.store import aborts, batches, changes
from promptmill.store.batches import BatchRow, refuse_left
from promptmill.store.rows import last_within
from promptmill.tables import batch_lanes, file_parts, files, jobs, results
from promptmill.tables import batches as batch_rows

#: States that a job can be taken back from.
AGAIN: Final = frozenset(state for state, moves in TRANSITIONS.items() if moves == frozenset({State.READY}))

#: A batch that is being read in, or is on its way to cancelled, is not started again in the middle of that.
_MAY_GO_ON: Final = frozenset({BatchState.IN_PROGRESS, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})

#: Read together: lines, and their bytes.
_LINES_AT_ONCE: Final = 1_000
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
#: Moved together: more than workers can do until the next ones come, so that the batch does not end in between.
_MOVED_AT_ONCE: Final = 10_000
#: The event loop is everybody's.
_TURN_SECONDS: Final = 0.003


@dataclass(frozen=True, slots=True)
class Again:
    """What came of it: jobs that start again, those that keep their result, since their line is not accepted, and of
    those that were named the ones that had succeeded."""

    retried: int = 0
    left: int = 0
    succeeded: int = 0


async def start_again(
    db: Database,
    settings: Settings,
    batch_id: int,
    *,
    states: Collection[State] = AGAIN,
    positions: Sequence[int] | None = None,
    clock: Callable[[], float],
) -> Again:
    """Finished jobs of the batch in these states (and, where given, at these positions) → ready.

    The batch is in progress again, without a deadline that has passed. Raises NotNow where it is being read in, is
    being cancelled (also when that is asked for while many move), or failed as a whole; NotFound.
    """
    batch = await batches.get(db, batch_id)
    refuse_left(batch, clock())
    _refuse(batch)
    chosen = AGAIN & set(states)
    succeeded = 0 if positions is None else await _succeeded(db, batch_id, positions)
    retrial = _Retrial(db, settings, batch, clock)
    left = 0
    held: list[_Job] = []
    moving: asyncio.Task[None] | None = None  # while one group moves the next one is checked
    try:
        async for rows in _finished(db, batch_id, chosen, positions):
            taken = await retrial.checked(rows)
            left += len(rows) - len(taken)
            held += taken
            if len(held) >= _MOVED_AT_ONCE:
                if moving is not None:
                    await moving
                moving = asyncio.create_task(retrial.move(held))
                held = []
        if moving is not None:
            await moving
        if held:
            await retrial.move(held)
    finally:
        if moving is not None:
            await asyncio.gather(moving, return_exceptions=True)
    if retrial.has_lost_deadline:
        await changes.spread_deadline(db, batch_id=batch_id)
    return Again(retrial.moved, left, succeeded)


def _refuse(batch: BatchRow) -> None:
    if batch.state is BatchState.FAILED:
        raise NotNow(f"{batch.public_id} has failed: its lines were wrong, so there is no job to try again")
    if batch.state not in _MAY_GO_ON:
        raise NotNow(f"{batch.public_id} is {batch.state.value}; try its jobs again when that has ended")


async def _succeeded(db: Database, batch_id: int, positions: Sequence[int]) -> int:
    """How many of these did: they are not tried again."""
    theirs = sa.and_(results.c.batch_id == batch_id, results.c.state == State.SUCCEEDED.value)
    statement = sa.select(sa.func.count()).where(theirs, db.any_of(results.c.position, positions))
    async with db.read() as connection:
        return int((await connection.execute(statement)).scalar_one())


async def _finished(
    db: Database, batch_id: int, states: Collection[State], positions: Sequence[int] | None
) -> AsyncIterator[Sequence[Any]]:
    """Results with their lines, in groups that are small together: their sizes are asked for first."""
    lines = sa.and_(file_parts.c.file_id == results.c.file_id, file_parts.c.part == results.c.part)
    theirs = [
        results.c.batch_id == batch_id,
        results.c.position > sa.bindparam("after"),
        results.c.state.in_([state.value for state in states]),
    ]
    if positions is not None:
        theirs.append(db.any_of(results.c.position, positions))
    sizes = sa.select(results.c.position, sa.func.length(file_parts.c.data)).join(file_parts, lines).where(*theirs)
    content = (
        sa.select(
            results.c.id, results.c.position, results.c.state, results.c.job_id, results.c.epoch, results.c.lane_id,
            results.c.file_id, results.c.part, results.c.error_code,
            file_parts.c.line, file_parts.c.form, file_parts.c.encoding, file_parts.c.data,
        )
        .join(file_parts, lines)
        .where(*theirs, results.c.position <= sa.bindparam("last"))
        .order_by(results.c.position)
    )  # fmt: skip
    sizes = sizes.order_by(results.c.position).limit(_LINES_AT_ONCE)
    after = -1
    while True:
        async with db.read() as connection:
            found = (await connection.execute(sizes, {"after": after})).all()
            if not found:
                return
            last = last_within([(position, size) for position, size in found], _BYTES_AT_ONCE)
            rows = (await connection.execute(content, {"after": after, "last": last})).all()
        yield rows
        after = last


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A result that is to be a job again, and what its line says by now."""

    result_id: int  # never used twice: while it is there, nobody else has taken the job back
    position: int
    was: State
    job_id: int  # 0: it never was a job
    epoch: int
    file_id: int
    part: int
    line: int
    lane_id: int
    parsed: ParsedLine

    @property
    def custom_id(self) -> str:
        return self.parsed.custom_id or f"line-{self.line}"


class _Retrial:
    """Jobs of one batch on their way back."""

    def __init__(self, db: Database, settings: Settings, batch: BatchRow, clock: Callable[[], float]) -> None:
        self.has_lost_deadline = False
        self.moved = 0
        self._cancelled_at = batch.cancelling_at
        self._db = db
        self._batch = batch
        self._clock = clock
        self._named: set[str] = set()  # custom_ids of lines that were bad, and are jobs now
        self._input_format: InputFormat | None = None
        self._turn_began = time.perf_counter()
        self._checker = Checker(
            db, settings, Defaults.from_json(batch.defaults), file_id=batch.file_id, tenant_id=batch.tenant_id,
            created_at=clock(),
        )  # fmt: skip

    async def checked(self, rows: Sequence[Any]) -> list[_Job]:
        """Those that may start again."""
        good = []
        for row in rows:
            if time.perf_counter() - self._turn_began > _TURN_SECONDS:
                await asyncio.sleep(0)
                self._turn_began = time.perf_counter()
            job = await self._job(row)
            if job is not None:
                good.append(job)
        return await self._without_known_names(good)

    async def _job(self, row: Any) -> _Job | None:
        was = State(row.state)
        if row.error_code == "line_too_large" or not row.data:
            return None  # what is kept of it may be cut; or its file is gone
        line = Line(row.line or 1, unpack(row.encoding, row.data))
        self._checker.input_format = await self._format(row, was)
        parsed = self._checker.parsed(line, allow_stream=self._batch.is_inbox)
        if isinstance(parsed, LineError):
            return None
        lane_id = row.lane_id  # it was found, and what the line attached was kept, when it became a job
        if was is State.INVALID:
            lane_id = await self._checker.lane(line, parsed)
            if isinstance(lane_id, LineError):
                return None
        return _Job(
            result_id=row.id, position=row.position, was=was, job_id=row.job_id, epoch=row.epoch, file_id=row.file_id,
            part=row.part, line=line.number, lane_id=lane_id, parsed=parsed,
        )  # fmt: skip

    async def _format(self, row: Any, was: State) -> InputFormat:
        """The form of a good line is known; a bad one is read as its input was."""
        if was is not State.INVALID:
            return InputFormat.TEXT if row.form == Form.TEXT else InputFormat.JSON
        if self._input_format is None:
            statement = sa.select(file_parts.c.encoding, file_parts.c.data)
            statement = statement.where(file_parts.c.file_id == row.file_id, file_parts.c.part == 0)
            async with self._db.read() as connection:
                encoding, data = (await connection.execute(statement)).one()
            self._input_format = detect_format(self._batch.source, unpack(encoding, data))
        return self._input_format

    async def _without_known_names(self, good: list[_Job]) -> list[_Job]:
        """Of lines that were bad, those whose custom_id no other line has."""
        names = {job.custom_id for job in good if job.was is State.INVALID}
        if not names:
            return good
        own = sa.select(files.c.id).where(files.c.batch_id == self._batch.id, files.c.view == OWN_VIEW)
        theirs = sa.or_(file_parts.c.file_id == self._batch.file_id, file_parts.c.file_id.in_(own))
        statement = sa.select(file_parts.c.custom_id).where(theirs, file_parts.c.custom_id.in_(sorted(names)))
        async with self._db.read() as connection:
            known = set((await connection.execute(statement)).scalars()) | self._named
        kept = []
        for job in good:
            if job.was is State.INVALID:
                if job.custom_id in known:
                    continue
                known.add(job.custom_id)
                self._named.add(job.custom_id)
            kept.append(job)
        return kept

    async def move(self, group: Sequence[_Job]) -> None:
        """Results → jobs, in one transaction: those that are still what was read. Raises NotNow."""
        now, db = self._clock(), self._db
        by_result = {job.result_id: job for job in group}
        async with db.write() as connection:
            batch = await batches.locked(connection, self._batch.id)  # before its results change, as everybody does
            self._refuse_cancelled(batch)
            _refuse(batch)
            is_late = batch.deadline is not None and batch.deadline <= now
            self.has_lost_deadline |= is_late
            gone = (
                sa.delete(results)
                .where(results.c.batch_id == batch.id, db.any_of(results.c.id, by_result))
                .returning(results.c.id)
            )
            taken = [by_result[id_] for id_ in (await connection.execute(gone)).scalars()]
            moved = sorted(taken, key=lambda job: job.position)
            await self._insert(connection, moved, now, None if is_late else batch.deadline)
            goes_on: dict[str, Any] = {
                "state": BatchState.IN_PROGRESS, "finished_at": None, "cancelling_at": None, "aborts_calls": False,
                **({"deadline": None} if is_late else {}),
                **{state.value: batch_rows.c[state.value] - n for state, n in Counter(j.was for j in moved).items()},
            }  # fmt: skip
            if moved:
                await connection.execute(sa.update(batch_rows).where(batch_rows.c.id == batch.id).values(goes_on))
        if moved:
            self.moved += len(moved)
            self._cancelled_at = None

    def _refuse_cancelled(self, batch: BatchRow) -> None:
        """Whoever cancelled it after the first look wants it to stop, jobs that started again as well."""
        if batch.cancelling_at is not None and batch.cancelling_at != self._cancelled_at:
            raise NotNow(
                f"{batch.public_id} was cancelled meanwhile: {self.moved:,} jobs were started again before that, and "
                "no more are"
            )

    async def _insert(
        self, connection: AsyncConnection, moved: Sequence[_Job], now: float, deadline: float | None
    ) -> None:
        db, batch_id = self._db, self._batch.id
        known: list[Row] = []
        new: list[Row] = []
        for job in moved:
            values = job_row(
                job.parsed, batch_id=batch_id, position=job.position, lane_id=job.lane_id, file_id=job.file_id,
                part=job.part, now=now, not_before=None, deadline=deadline,
            )  # fmt: skip
            if job.job_id:
                known.append((job.job_id, *values[:_EPOCH_AT], job.epoch, *values[_EPOCH_AT + 1 :]))
            else:
                new.append(values)
        await aborts.forget_in(connection, db, [job.job_id for job in moved])
        await db.insert(connection, jobs, ("id", *JOB_COLUMNS), known)
        await db.insert(connection, jobs, JOB_COLUMNS, new)
        await self._name(connection, [job for job in moved if job.was is State.INVALID])
        lanes = Counter(job.lane_id for job in moved if job.was is State.INVALID)
        await db.add_up(connection, batch_lanes, [(batch_id, lane_id, n) for lane_id, n in sorted(lanes.items())])

    async def _name(self, connection: AsyncConnection, once_bad: Sequence[_Job]) -> None:
        """What intake notes beside a good line."""
        if not once_bad:
            return
        statement = (
            sa.update(file_parts)
            .where(file_parts.c.file_id == sa.bindparam("of_file"), file_parts.c.part == sa.bindparam("at"))
            .values(custom_id=sa.bindparam("name"), form=sa.bindparam("said"))
        )
        await connection.execute(
            statement,
            [
                {"of_file": job.file_id, "at": job.part, "name": job.custom_id, "said": job.parsed.form.value}
                for job in once_bad
            ],
        )


_EPOCH_AT: Final = JOB_COLUMNS.index("epoch")
