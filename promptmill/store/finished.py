"""The jobs of a batch as they finish, without their answers: what a stream of events is made of."""

from dataclasses import dataclass

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.tables import file_parts, results


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """One that has its result; `id` rises in the order in which the jobs of a batch finished."""

    id: int
    position: int
    line: int | None
    custom_id: str | None
    state: str
    status_code: int | None
    error_code: str | None
    attempts: int

    @property
    def name(self) -> str:
        """The custom_id; a line without one goes by its number."""
        if self.custom_id is not None:
            return self.custom_id
        return f"position-{self.position}" if self.line is None else f"line-{self.line}"


_COLUMNS = (
    results.c.id, results.c.position, file_parts.c.line, file_parts.c.custom_id, results.c.state,
    results.c.status_code, results.c.error_code, results.c.attempts,
)  # fmt: skip


async def finished_after(db: Database, batch_id: int, after: int, *, limit: int) -> list[FinishedJob]:
    """Those that finished behind the result `after`, in their order. Ask for no more than there are: the search goes on
    through other batches' results until it has so many."""
    # `+ 0`: results are to be read in their order from `after` on, not all of the batch's and then sorted.
    theirs = results.c.batch_id + 0 == batch_id
    statement = (
        sa.select(*_COLUMNS)
        .outerjoin(file_parts, sa.and_(file_parts.c.file_id == results.c.file_id, file_parts.c.part == results.c.part))
        .where(theirs, results.c.id > after)
        .order_by(results.c.id)
        .limit(limit)
    )
    async with db.read() as connection:
        return [FinishedJob(*row) for row in await connection.execute(statement)]


async def count_until(db: Database, batch_id: int, last: int) -> int:
    """How many of the batch had finished with the result `last`."""
    statement = sa.select(sa.func.count()).where(results.c.batch_id == batch_id, results.c.id <= last)
    async with db.read() as connection:
        return int((await connection.execute(statement)).scalar_one())
