"""Bytes in and out: a file is a sequence of parts, and its content is their concatenation."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import unpack
from promptmill.engine import Database
from promptmill.store.rows import new_public_id
from promptmill.tables import DEFAULT_TENANT, file_parts, files

#: Content that is not lines (an audio file) is kept in slices of this size.
SLICE_BYTES: Final = 1024 * 1024

PART_COLUMNS: Final = ("file_id", "part", "line", "custom_id", "form", "encoding", "data")

_READ_AHEAD = 500


async def create(db: Database, *, filename: str, purpose: str, now: float, tenant_id: int = DEFAULT_TENANT) -> int:
    """An empty file; returns its id."""
    async with db.write() as connection:
        return await insert_file(connection, filename=filename, purpose=purpose, tenant_id=tenant_id, now=now)


async def insert_file(connection: AsyncConnection, *, filename: str, purpose: str, tenant_id: int, now: float) -> int:
    """The same, in the caller's transaction."""
    statement = sa.insert(files).values(
        public_id=new_public_id("file-"), tenant_id=tenant_id, filename=filename, purpose=purpose, created_at=now
    )
    return int((await connection.execute(statement.returning(files.c.id))).scalar_one())


async def sealed(db: Database, *, file_id: int, size_bytes: int, parts: int) -> None:
    """All parts are there: how many, and how large together."""
    async with db.write() as connection:
        statement = sa.update(files).where(files.c.id == file_id)
        await connection.execute(statement.values(bytes=size_bytes, parts=parts))


async def find(db: Database, public_id: str, *, tenant_id: int | None = None) -> int | None:
    """The id of the file with this public id; with `tenant_id`, only where that tenant may use it."""
    statement = sa.select(files.c.id).where(files.c.public_id == public_id)
    if tenant_id is not None:
        statement = statement.where(files.c.tenant_id == tenant_id, files.c.deleted_at.is_(None))
    async with db.read() as connection:
        return (await connection.execute(statement)).scalar()


async def content(db: Database, file_id: int) -> AsyncIterator[bytes]:
    """The file's parts in order, a few hundred at a time."""
    after = -1
    while True:
        statement = (
            sa.select(file_parts.c.part, file_parts.c.encoding, file_parts.c.data)
            .where(file_parts.c.file_id == file_id, file_parts.c.part > after)
            .order_by(file_parts.c.part)
            .limit(_READ_AHEAD)
        )
        async with db.read() as connection:
            rows = (await connection.execute(statement)).all()
        if not rows:
            return
        for part, encoding, data in rows:
            after = part
            yield unpack(encoding, data)


async def custom_ids_at(db: Database, file_id: int, lines: Sequence[int]) -> dict[int, str]:
    """Line number → custom_id, for the lines that have one."""
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(file_parts.c.line, file_parts.c.custom_id).where(
                file_parts.c.file_id == file_id, db.any_of(file_parts.c.line, lines)
            )
        )
        return {line: custom_id for line, custom_id in rows if custom_id is not None}
