"""Jobs are added to a batch that is open: a few thousand in one transaction, all or none.

Their lines are kept in a file of the batch's own, beside the one that it may have been made of.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import pack
from promptmill.engine import Database
from promptmill.errors import LineError
from promptmill.intake.rows import JOB_COLUMNS, job_row
from promptmill.job import BatchState
from promptmill.request import ParsedLine
from promptmill.store import files
from promptmill.store.batches import BatchRow
from promptmill.store.inputs import OWN_PURPOSE
from promptmill.store.rows import batch_in
from promptmill.tables import batch_lanes, batches, file_parts, jobs
from promptmill.tables import files as file_rows

#: Beside "output" and "errors": what names the batch's own file among those that belong to it.
OWN_VIEW = "jobs"


@dataclass(frozen=True, slots=True)
class Addition:
    """A checked line that is to be a job, in the form that `parsed` says."""

    line: bytes
    parsed: ParsedLine
    lane_id: int


class NotOpen(Exception):  # noqa: N818 - a fact about the batch, for the caller to put in words
    """The batch takes no jobs: it was sealed, it has ended, or its file is still being read."""


class Repeated(Exception):  # noqa: N818 - a fact about the lines
    """A custom_id was used before. `error.line` is the place among the additions, from 1."""

    def __init__(self, error: LineError) -> None:
        super().__init__(str(error))
        self.error = error


async def append(
    db: Database,
    batch: BatchRow,
    additions: Sequence[Addition],
    *,
    now: float,
    also: Callable[[AsyncConnection, int], Awaitable[None]] | None = None,
) -> int:
    """Returns the first one's position; the others follow. `also` is told it, in the same transaction.

    Raises NotOpen or Repeated, and then nothing was added.
    """
    async with db.write() as connection:
        count = len(additions)
        taken = (
            sa.update(batches)
            .where(batches.c.id == batch.id, batches.c.is_open, batch_in(BatchState.IN_PROGRESS))
            .values(total=batches.c.total + count)
            .returning(batches.c.total, batches.c.deadline)
        )
        # From here on the batch is ours: who adds jobs too, or changes its deadline, waits.
        row = (await connection.execute(taken)).one_or_none()
        if row is None:
            raise NotOpen
        first = int(row.total) - count
        file_id = await _own_file(connection, batch, now)
        await _refuse_repeated(connection, {batch.file_id, file_id}, additions)
        parts, rows, lanes = [], [], dict[int, int]()
        for position, each in enumerate(additions, first):
            parsed = each.parsed
            parts.append((file_id, position, position + 1, parsed.custom_id, parsed.form.value, *pack(each.line)))
            rows.append(
                job_row(
                    parsed, batch_id=batch.id, position=position, lane_id=each.lane_id, file_id=file_id, part=position,
                    now=now, not_before=None, deadline=row.deadline,
                )
            )  # fmt: skip
            lanes[each.lane_id] = lanes.get(each.lane_id, 0) + 1
        await db.insert(connection, file_parts, files.PART_COLUMNS, parts)
        await db.insert(connection, jobs, JOB_COLUMNS, rows)
        await db.add_up(connection, batch_lanes, [(batch.id, lane_id, n) for lane_id, n in sorted(lanes.items())])
        if also is not None:
            await also(connection, first)
        return first


async def _own_file(connection: AsyncConnection, batch: BatchRow, now: float) -> int:
    purpose = sa.select(file_rows.c.purpose).where(file_rows.c.id == batch.file_id)
    if (await connection.execute(purpose)).scalar() == OWN_PURPOSE:
        return batch.file_id
    own = sa.select(file_rows.c.id).where(file_rows.c.batch_id == batch.id, file_rows.c.view == OWN_VIEW)
    found = (await connection.execute(own)).scalar()
    if found is not None:
        return int(found)
    file_id = await files.insert_file(
        connection, filename=f"{batch.public_id}_jobs.jsonl", purpose=OWN_PURPOSE, tenant_id=batch.tenant_id, now=now
    )
    named = sa.update(file_rows).where(file_rows.c.id == file_id)
    await connection.execute(named.values(batch_id=batch.id, view=OWN_VIEW))
    return file_id


async def _refuse_repeated(connection: AsyncConnection, file_ids: set[int], additions: Sequence[Addition]) -> None:
    places: dict[str, int] = {}
    for place, each in enumerate(additions, 1):
        custom_id = each.parsed.custom_id
        if custom_id is None:
            continue
        if custom_id in places:
            raise Repeated(_repeated(place, custom_id, f"number {places[custom_id]}"))
        places[custom_id] = place
    names = list(places)
    for start in range(0, len(names), _NAMES_AT_ONCE):
        some = names[start : start + _NAMES_AT_ONCE]
        known = sa.select(file_parts.c.custom_id).where(
            file_parts.c.file_id.in_(file_ids), file_parts.c.custom_id.in_(some)
        )
        found = (await connection.execute(known.limit(1))).scalar()
        if found is not None:
            raise Repeated(_repeated(places[found], found, "a job of this batch"))


_NAMES_AT_ONCE = 5_000


def _repeated(place: int, custom_id: str, where: str) -> LineError:
    return LineError(place, "duplicate_custom_id", f"the custom_id {custom_id!r} was given before, to {where}",
                     "custom_id")  # fmt: skip
