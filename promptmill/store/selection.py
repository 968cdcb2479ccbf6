"""Which jobs of a batch somebody means who names them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.store.batches import BatchRow
from promptmill.tables import file_parts, jobs, results

_NAMES_AT_ONCE: Final = 5_000


async def positions(db: Database, batch: BatchRow, custom_ids: Sequence[str]) -> dict[str, list[int]]:
    """custom_id → positions of the batch's jobs that have it, finished or not; those without a job are left out."""
    found: dict[str, list[int]] = defaultdict(list)
    async with db.read() as connection:
        for start in range(0, len(custom_ids), _NAMES_AT_ONCE):
            some = custom_ids[start : start + _NAMES_AT_ONCE]
            for table in (results, jobs):
                line = sa.and_(file_parts.c.file_id == table.c.file_id, file_parts.c.part == table.c.part)
                statement = sa.select(file_parts.c.custom_id, table.c.position).join(file_parts, line)
                theirs = statement.where(table.c.batch_id == batch.id, file_parts.c.custom_id.in_(some))
                for custom_id, position in await connection.execute(theirs):
                    found[custom_id].append(position)
    return dict(found)
