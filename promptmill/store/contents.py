"""Content that is at hand as a whole: kept as a file in one transaction."""

import sqlalchemy as sa

from promptmill.content import pack
from promptmill.engine import Database
from promptmill.store.files import PART_COLUMNS, SLICE_BYTES, insert_file
from promptmill.tables import file_parts, files


async def store_bytes(
    db: Database,
    content: bytes,
    *,
    filename: str,
    purpose: str,
    tenant_id: int,
    now: float,
    expires_at: float | None = None,
) -> tuple[int, str]:
    """A file with this content, in slices; returns its id and its public id."""
    slices = [content[start : start + SLICE_BYTES] for start in range(0, len(content), SLICE_BYTES)]
    async with db.write() as connection:
        file_id = await insert_file(connection, filename=filename, purpose=purpose, tenant_id=tenant_id, now=now)
        rows = [(file_id, part, None, None, None, *pack(data)) for part, data in enumerate(slices)]
        await db.insert(connection, file_parts, PART_COLUMNS, rows)
        facts = {"bytes": len(content), "parts": len(slices), "expires_at": expires_at}
        sealed = sa.update(files).where(files.c.id == file_id).values(facts)
        public_id = (await connection.execute(sealed.returning(files.c.public_id))).scalar_one()
    return file_id, str(public_id)
