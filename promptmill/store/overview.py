"""What people ask about a batch beside its counts: who is working, and which of its jobs failed for a reason."""

from dataclasses import dataclass

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.tables import file_parts, results, workers


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker that has not stopped; one that died stays here until its jobs were given back."""

    id: int
    name: str
    started_at: float
    heartbeat_at: float
    in_flight: int


async def working(db: Database) -> list[WorkerRow]:
    """The workers that have not stopped, the oldest first."""
    statement = sa.select(
        workers.c.id, workers.c.name, workers.c.started_at, workers.c.heartbeat_at, workers.c.in_flight
    )
    async with db.read() as connection:
        rows = await connection.execute(statement.where(workers.c.stopped_at.is_(None)).order_by(workers.c.id))
        return [WorkerRow(*row) for row in rows]


async def examples(db: Database, batch_id: int, error_code: str, *, limit: int) -> list[str]:
    """custom_ids of the first jobs that ended with this error code; a line without one goes by its number."""
    statement = (
        sa.select(file_parts.c.custom_id, file_parts.c.line)
        .select_from(results)
        .join(file_parts, sa.and_(file_parts.c.file_id == results.c.file_id, file_parts.c.part == results.c.part))
        .where(results.c.batch_id == batch_id, results.c.error_code == error_code)
        .order_by(results.c.position)
        .limit(limit)
    )
    async with db.read() as connection:
        return [custom_id or f"line-{line}" for custom_id, line in await connection.execute(statement)]
