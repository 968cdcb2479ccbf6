"""What a batch is made of, for those who ask about many batches at once: their input files and their models."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.tables import batch_lanes, files, lanes

#: Of files that hold jobs that were added to a batch one by one.
OWN_PURPOSE: Final = "_batch"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that a batch was made of."""

    id: int
    public_id: str
    purpose: str
    bytes: int


_COLUMNS: Final = tuple(files.c[name] for name in InputFile.__dataclass_fields__)


async def by_id(db: Database, file_ids: Iterable[int]) -> dict[int, InputFile]:
    """These files, also those that are deleted: a batch keeps what it was made of until it has ended."""
    async with db.read() as connection:
        rows = await connection.execute(sa.select(*_COLUMNS).where(db.any_of(files.c.id, file_ids)))
        return {row.id: InputFile(*row) for row in rows}


async def only_models(db: Database, batch_ids: Iterable[int]) -> dict[int, str]:
    """Batch id → its model, for those that have all their jobs on one lane."""
    statement = (
        sa.select(batch_lanes.c.batch_id, sa.func.min(lanes.c.model).label("model"))
        .join(lanes, lanes.c.id == batch_lanes.c.lane_id)
        .where(db.any_of(batch_lanes.c.batch_id, batch_ids))
        .group_by(batch_lanes.c.batch_id)
        .having(sa.func.count() == 1)
    )
    async with db.read() as connection:
        rows = await connection.execute(statement)
        return {row.batch_id: row.model for row in rows}
