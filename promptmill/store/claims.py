"""ready → running: a drain takes jobs of one lane, as many as it has permits for.

Two statements in one transaction rather than one: the rows are picked and locked first, so that the claim can stop at
the byte budget before anything is marked. `SKIP LOCKED` (PostgreSQL) lets drains claim side by side; SQLite has one
writer and compiles the clause away. Measured in docs/store.md.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.job import BatchState, State
from promptmill.store import budgets
from promptmill.store.budgets import Expected
from promptmill.store.pauses import is_paused
from promptmill.store.rows import in_state
from promptmill.tables import Id, batches, file_parts, jobs


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job in a worker's hands. (worker, job_id, epoch) is the fence for every later write."""

    job_id: int
    batch_id: int
    position: int
    lane_id: int
    epoch: int
    attempts: int  # counted ones, before this
    file_id: int
    part: int
    body_bytes: int
    tokens: int  # estimate for the prompt
    max_tokens: int | None
    deadline: float | None
    line: bytes
    form: str


#: Asked once for each batch of a claim, not for each job: what was ordered since the drain looked holds. Its constants
#: are literals, so that it costs less than a fiftieth of the claim.
_PAUSED: Final = is_paused(
    batch_id=batches.c.id, lane_id=sa.bindparam("lane_id", type_=Id), tenant_id=batches.c.tenant_id
)
_MAY_START: Final = sa.exists().where(
    batches.c.id == sa.bindparam("batch_id"),
    batches.c.state == sa.literal_column(f"'{BatchState.IN_PROGRESS}'", sa.Text),
    sa.not_(_PAUSED),
)
_PICK = (
    sa.select(
        jobs.c.id,
        jobs.c.batch_id,
        jobs.c.position,
        jobs.c.lane_id,
        jobs.c.epoch,
        jobs.c.attempts,
        jobs.c.file_id,
        jobs.c.part,
        jobs.c.bytes,
        jobs.c.tokens,
        jobs.c.max_tokens,
        jobs.c.deadline,
    )
    .where(jobs.c.lane_id == sa.bindparam("lane_id"), jobs.c.batch_id == sa.bindparam("batch_id"))
    .where(in_state(State.READY), jobs.c.position <= sa.bindparam("last"), _MAY_START)
    .order_by(jobs.c.position)
    .limit(sa.bindparam("count"))
    .with_for_update(skip_locked=True)
)
#: Beyond every position.
_ALL: Final = 2**62
_NO_ENDS: Final[Mapping[int, int]] = MappingProxyType({})
_NO_BUDGETS: Final[Mapping[int, Expected]] = MappingProxyType({})


async def claim(
    db: Database,
    *,
    worker_id: int,
    lane_id: int,
    shares: Sequence[tuple[int, int]],
    max_bytes: int,
    until: Mapping[int, int] = _NO_ENDS,
    expected: Mapping[int, Expected] = _NO_BUDGETS,
    now: float = 0.0,
) -> list[Claimed]:
    """Claim up to the given number of jobs of each batch, lowest position first; of one that is not in progress by
    now, or paused in whatever way, none.

    `shares` is (batch_id, count) in the order of their turn. Stops before the request bodies exceed `max_bytes`
    together; but the first job is claimed whatever its size, so that a giant one cannot wait for ever. `until` has the
    last position that may be claimed, of batches with a canary; `expected` what a call takes, of those with a budget,
    and `now` is for those: a batch may be paused.
    """
    async with db.write() as connection:
        picked: list[Any] = []
        room = max_bytes
        for batch_id, count in shares:
            wanted = {"lane_id": lane_id, "batch_id": batch_id, "count": count, "last": until.get(batch_id, _ALL)}
            rows: Sequence[Any] = (await connection.execute(_PICK, wanted)).all()
            if rows and batch_id in expected:
                rows = await budgets.fitting(
                    connection, batch_id=batch_id, picked=rows, expected=expected[batch_id], now=now
                )
            for row in rows:
                if row.bytes > room and picked:
                    break
                room -= row.bytes
                picked.append(row)
            if len(rows) == count and room <= 0:
                break
        if not picked:
            return []
        await connection.execute(
            sa.update(jobs)
            .where(db.any_of(jobs.c.id, [row.id for row in picked]))
            .values(state=State.RUNNING, worker_id=worker_id, epoch=jobs.c.epoch + 1, not_before=None)
        )
        lines = await _lines(db, connection, picked)
        # Positional on purpose: attribute access on a thousand rows costs as much as the statement.
        return [
            Claimed(id_, batch, position, lane, epoch + 1, tried, file, part, size, tokens, limit, due,
                    *lines[file, part])
            for id_, batch, position, lane, epoch, tried, file, part, size, tokens, limit, due in picked
        ]  # fmt: skip


async def _lines(
    db: Database, connection: AsyncConnection, picked: Sequence[Any]
) -> dict[tuple[int, int], tuple[bytes, str]]:
    parts: dict[int, list[int]] = defaultdict(list)
    for row in picked:
        parts[row.file_id].append(row.part)
    found = {}
    for file_id, wanted in parts.items():
        rows = await connection.execute(
            sa.select(file_parts.c.part, file_parts.c.encoding, file_parts.c.data, file_parts.c.form).where(
                file_parts.c.file_id == file_id, db.any_of(file_parts.c.part, wanted)
            )
        )
        for part, encoding, data, form in rows:
            found[file_id, part] = (unpack(encoding, data), form or "")
    return found
