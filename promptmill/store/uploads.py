"""Files that arrive in more than one request. Until one is complete its file is PENDING, and nobody sees that.

An upload is `pending` until somebody completes or cancels it, or upkeep finds it past `expires_at`.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.store import files
from promptmill.store.files import FileStatus
from promptmill.store.rows import is_public_id, new_public_id
from promptmill.tables import batches, upload_parts, uploads
from promptmill.tables import files as files_table

PENDING = "pending"
COMPLETED = "completed"
CANCELLED = "cancelled"

#: The purpose of the files that hold an upload's pieces.
PART_PURPOSE = "_upload_part"


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload as the database has it."""

    id: int
    public_id: str
    tenant_id: int
    file_id: int
    status: str
    bytes: int
    mime_type: str | None
    checksum: str | None
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class PartRow:
    """A piece of one; its content is the file `file_id`."""

    id: int
    public_id: str
    number: int | None
    file_id: int
    etag: str
    bytes: int


_COLUMNS = tuple(uploads.c[name] for name in UploadRow.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpload:
    """What one starts with, its file included."""

    tenant_id: int
    filename: str
    purpose: str
    size_bytes: int
    expires_at: float
    file_expires_at: float | None = None
    #: The secret in an address that needs no key.
    token: str | None = None
    mime_type: str | None = None
    checksum: str | None = None


def digest(token: str) -> str:
    """What is kept of a token: it has 256 random bits, so one SHA-256 is as good as any slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


async def create(db: Database, new: NewUpload, *, now: float) -> UploadRow:
    """→ pending, with a file that nobody sees yet."""
    async with db.write() as connection:
        file_id = await files.insert_file(
            connection, filename=new.filename, purpose=new.purpose, tenant_id=new.tenant_id, now=now,
            status=FileStatus.PENDING, expires_at=new.file_expires_at,
        )  # fmt: skip
        statement = sa.insert(uploads).values(
            public_id=new_public_id("upload_"), tenant_id=new.tenant_id, file_id=file_id, status=PENDING,
            token_digest=None if new.token is None else digest(new.token), bytes=new.size_bytes,
            mime_type=new.mime_type, checksum=new.checksum, created_at=now, expires_at=new.expires_at,
        )  # fmt: skip
        return UploadRow(*(await connection.execute(statement.returning(*_COLUMNS))).one())


async def get(db: Database, public_id: str, *, tenant_id: int, now: float) -> UploadRow | None:
    """The tenant's upload with this public id."""
    if not is_public_id(public_id):
        return None
    return await _one(db, uploads.c.public_id == public_id, uploads.c.tenant_id == tenant_id, now=now)


async def by_token(db: Database, token: str, *, now: float) -> UploadRow | None:
    """The upload whose address has this secret."""
    return await _one(db, uploads.c.token_digest == digest(token), now=now)


async def of_file(db: Database, file_id: int, *, now: float) -> UploadRow | None:
    """The upload that the file came with, where it is not long ago."""
    return await _one(db, uploads.c.file_id == file_id, now=now)


async def _one(db: Database, *where: "sa.ColumnElement[bool]", now: float) -> UploadRow | None:
    statement = sa.select(*_COLUMNS).where(*where, uploads.c.expires_at > now)
    async with db.read() as connection:
        row = (await connection.execute(statement)).one_or_none()
    return None if row is None else UploadRow(*row)


async def close(db: Database, upload_id: int, status: str) -> bool:
    """pending → completed or cancelled; False where it is not pending any more."""
    async with db.write() as connection:
        return await _closed(connection, upload_id, status)


async def _closed(connection: AsyncConnection, upload_id: int, status: str) -> bool:
    statement = sa.update(uploads).where(uploads.c.id == upload_id, uploads.c.status == PENDING)
    return bool((await connection.execute(statement.values(status=status))).rowcount)


async def put_in_place(
    db: Database, upload: UploadRow, kept_id: int, values: dict[str, Any], *, now: float, close_it: bool
) -> bool:
    """The file `kept_id` becomes the upload's, under the public id that was announced; `values` are its columns.

    The one that had the id until now (nothing, or an earlier PUT) is deleted. False, and nothing is changed, where
    the upload is not pending any more, or a batch uses that one already.
    """
    async with db.write() as connection:
        still = sa.select(uploads.c.file_id, uploads.c.status).where(uploads.c.id == upload.id).with_for_update()
        row = (await connection.execute(still)).one_or_none()
        if row is None or row.status != PENDING:
            return False
        used = sa.select(batches.c.id).where(batches.c.file_id == row.file_id).limit(1)
        if (await connection.execute(used)).scalar() is not None:
            return False
        old = sa.select(files_table.c.public_id, files_table.c.created_at, files_table.c.deleted_at)
        before = (await connection.execute(old.where(files_table.c.id == row.file_id))).one_or_none()
        if before is None or before.deleted_at is not None:
            return False
        replaced = {"public_id": new_public_id("file-"), "deleted_at": now, "purpose": "_replaced"}
        await connection.execute(sa.update(files_table).where(files_table.c.id == row.file_id).values(replaced))
        placed = {**values, "public_id": before.public_id, "created_at": before.created_at}
        await connection.execute(sa.update(files_table).where(files_table.c.id == kept_id).values(placed))
        moved = {"file_id": kept_id, "status": COMPLETED if close_it else PENDING}
        await connection.execute(sa.update(uploads).where(uploads.c.id == upload.id).values(moved))
    return True


async def add_part(
    db: Database, upload: UploadRow, *, file_id: int, etag: str, number: int | None, now: float
) -> str | None:
    """A piece, whose content is the file `file_id`; one of the same number is replaced. Returns its public id; None
    where the upload is not pending any more."""
    async with db.write() as connection:
        still = sa.select(uploads.c.status).where(uploads.c.id == upload.id).with_for_update()
        if (await connection.execute(still)).scalar() != PENDING:
            return None
        if number is not None:
            same = sa.delete(upload_parts).where(upload_parts.c.upload_id == upload.id, upload_parts.c.number == number)
            gone = (await connection.execute(same.returning(upload_parts.c.file_id))).scalars().all()
            for old in gone:
                await connection.execute(sa.update(files_table).where(files_table.c.id == old).values(deleted_at=now))
        statement = sa.insert(upload_parts).values(
            public_id=new_public_id("part_"), upload_id=upload.id, number=number, file_id=file_id, etag=etag,
            created_at=now,
        )  # fmt: skip
        return str((await connection.execute(statement.returning(upload_parts.c.public_id))).scalar_one())


async def parts(db: Database, upload_id: int) -> list[PartRow]:
    """Its pieces, in the order in which they came."""
    statement = (
        sa.select(upload_parts.c.id, upload_parts.c.public_id, upload_parts.c.number, upload_parts.c.file_id,
                  upload_parts.c.etag, files_table.c.bytes)
        .join(files_table, files_table.c.id == upload_parts.c.file_id)
        .where(upload_parts.c.upload_id == upload_id)
        .order_by(upload_parts.c.id)
    )  # fmt: skip
    async with db.read() as connection:
        return [PartRow(*row) for row in await connection.execute(statement)]


async def part_bytes(db: Database, upload_id: int) -> int:
    """How large its pieces are together."""
    statement = (
        sa.select(sa.func.coalesce(sa.func.sum(files_table.c.bytes), 0))
        .join(upload_parts, files_table.c.id == upload_parts.c.file_id)
        .where(upload_parts.c.upload_id == upload_id)
    )
    async with db.read() as connection:
        return int((await connection.execute(statement)).scalar_one())
