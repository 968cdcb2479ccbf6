"""A finished job starts again because somebody asks for it: its line is checked anew, and its result taken back.

The ledger keeps the earlier attempts, under the epochs that they had; the job goes on from there with the same id.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.errors import LineError
from promptmill.intake.checker import Checker
from promptmill.intake.rows import JOB_COLUMNS, Row, job_row
from promptmill.job import TRANSITIONS, BatchState, State
from promptmill.jsonl import InputFormat, Line
from promptmill.request import Defaults, Form
from promptmill.settings import Settings
from promptmill.store import batches
from promptmill.store.batches import BatchRow
from promptmill.tables import batches as batch_rows
from promptmill.tables import file_parts, jobs, results

#: States that a job can be taken back from.
AGAIN: Final = frozenset(state for state, moves in TRANSITIONS.items() if moves == frozenset({State.READY}))

#: A batch that is being read in, or is on its way to cancelled, is not started again in the middle of that.
_MAY_GO_ON: Final = frozenset({BatchState.IN_PROGRESS, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})
_AT_ONCE: Final = 1_000


async def start_again(
    db: Database,
    settings: Settings,
    batch_id: int,
    *,
    states: Collection[State] = AGAIN,
    positions: Sequence[int] | None = None,
    clock: Callable[[], float],
) -> int:
    """Finished jobs of the batch in these states (and, where given, at these positions) → ready; returns how many.

    A line that is not accepted any more (its model has no upstream now) keeps its result. The batch is in progress
    again, without a deadline that has passed.
    """
    batch = await batches.get(db, batch_id)
    if batch.state not in _MAY_GO_ON:
        return 0
    defaults = Defaults.from_json(batch.defaults)
    checker = Checker(db, settings, defaults, file_id=batch.file_id, tenant_id=batch.tenant_id, created_at=clock())
    started, after = 0, -1
    while True:
        rows = await _finished(db, batch_id, states, positions, after)
        if not rows:
            return started
        after = rows[-1].position
        again = {row.job_id: job for row in rows if (job := _as_job(checker, batch, row, clock())) is not None}
        if again:
            started += await _move(db, batch, again, clock())


async def _finished(
    db: Database, batch_id: int, states: Collection[State], positions: Sequence[int] | None, after: int
) -> Sequence[Any]:
    statement = (
        sa.select(
            results.c.position, results.c.job_id, results.c.epoch, results.c.lane_id, results.c.file_id, results.c.part,
            file_parts.c.line, file_parts.c.form, file_parts.c.encoding, file_parts.c.data,
        )
        .join(file_parts, sa.and_(file_parts.c.file_id == results.c.file_id, file_parts.c.part == results.c.part))
        .where(results.c.batch_id == batch_id, results.c.position > after)
        .where(results.c.state.in_([state.value for state in states]))
        .order_by(results.c.position)
        .limit(_AT_ONCE)
    )  # fmt: skip
    if positions is not None:
        statement = statement.where(db.any_of(results.c.position, positions))
    async with db.read() as connection:
        return (await connection.execute(statement)).all()


def _as_job(checker: Checker, batch: BatchRow, row: Any, now: float) -> Row | None:
    checker.input_format = InputFormat.TEXT if row.form == Form.TEXT else InputFormat.JSON
    line = Line(row.line or 1, unpack(row.encoding, row.data))
    parsed = checker.parsed(line, allow_stream=batch.is_inbox)
    if isinstance(parsed, LineError):
        return None
    deadline = batch.deadline if batch.deadline is not None and batch.deadline > now else None
    values = job_row(
        parsed, batch_id=batch.id, position=row.position, lane_id=row.lane_id, file_id=row.file_id, part=row.part,
        now=now, not_before=None, deadline=deadline,
    )  # fmt: skip
    epoch_at = JOB_COLUMNS.index("epoch")
    return (row.job_id, *values[:epoch_at], row.epoch, *values[epoch_at + 1 :])


async def _move(db: Database, batch: BatchRow, again: Mapping[int, Row], now: float) -> int:
    async with db.write() as connection:
        # The batch first: everybody locks it before its results change.
        await connection.execute(sa.select(batch_rows.c.id).where(batch_rows.c.id == batch.id).with_for_update())
        statement = (
            sa.delete(results)
            .where(db.any_of(results.c.job_id, again))
            .where(results.c.batch_id == batch.id, results.c.state.in_([state.value for state in AGAIN]))
            .returning(results.c.job_id, results.c.state)
        )
        gone = {job_id: State(state) for job_id, state in await connection.execute(statement)}
        rows = [again[job_id] for job_id in sorted(gone)]
        await db.insert(connection, jobs, ("id", *JOB_COLUMNS), rows)
        counts = {
            state.value: batch_rows.c[state.value] - sum(was is state for was in gone.values())
            for state in AGAIN
            if state in gone.values()
        }
        late = batch.deadline is not None and batch.deadline <= now
        await connection.execute(
            sa.update(batch_rows)
            .where(batch_rows.c.id == batch.id)
            .values(
                **counts, state=BatchState.IN_PROGRESS, finished_at=None, cancelling_at=None,
                **({"deadline": None} if late else {}),
            )
        )  # fmt: skip
        return len(gone)
