"""Bytes in and out: a file is a sequence of parts, and its content is their concatenation."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import pack, unpack
from promptmill.engine import Database
from promptmill.errors import NotFound
from promptmill.store.rows import is_public_id, new_public_id
from promptmill.tables import DEFAULT_TENANT, file_parts, files

#: Content that is not lines (an audio file) is kept in slices of this size.
SLICE_BYTES: Final = 1024 * 1024

PART_COLUMNS: Final = ("file_id", "part", "line", "custom_id", "form", "encoding", "data")

#: Parts, and bytes as stored, that are read at once.
_PARTS_AT_ONCE: Final = 1_000
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024


class FileStatus(StrEnum):
    """How far a file is; the words are OpenAI's, but for the first."""

    #: Announced, or on its way in: nobody sees it. Upkeep removes it where its upload never ends.
    PENDING = "pending"
    #: All bytes are there.
    UPLOADED = "uploaded"
    #: And looked at; nothing was wrong.
    PROCESSED = "processed"
    #: And looked at; `status_details` says what is wrong.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as the database has it."""

    id: int
    public_id: str
    tenant_id: int
    filename: str
    purpose: str
    status: FileStatus
    status_details: str | None
    bytes: int
    parts: int
    batch_id: int | None
    view: str | None
    created_at: float
    expires_at: float | None
    deleted_at: float | None


_COLUMNS = tuple(files.c[name] for name in FileRow.__dataclass_fields__)


def _row(row: Any) -> FileRow:
    values = row._asdict()
    return FileRow(**{**values, "status": FileStatus(values["status"])})


def _there(tenant_id: int, now: float) -> "sa.ColumnElement[bool]":
    """What the tenant sees: neither deleted nor expired, not on its way in, and not our own."""
    return sa.and_(
        files.c.tenant_id == tenant_id,
        files.c.deleted_at.is_(None),
        sa.or_(files.c.expires_at.is_(None), files.c.expires_at > now),
        files.c.status != FileStatus.PENDING.value,
        sa.not_(files.c.purpose.startswith("_", autoescape=True)),
    )


async def create(db: Database, *, filename: str, purpose: str, now: float, tenant_id: int = DEFAULT_TENANT) -> int:
    """An empty file; returns its id."""
    async with db.write() as connection:
        return await insert_file(connection, filename=filename, purpose=purpose, tenant_id=tenant_id, now=now)


async def insert_file(
    connection: AsyncConnection,
    *,
    filename: str,
    purpose: str,
    tenant_id: int,
    now: float,
    status: FileStatus = FileStatus.PROCESSED,
    expires_at: float | None = None,
) -> int:
    """The same, in the caller's transaction."""
    statement = sa.insert(files).values(
        public_id=new_public_id("file-"), tenant_id=tenant_id, filename=filename, purpose=purpose, created_at=now,
        status=status.value, expires_at=expires_at,
    )  # fmt: skip
    return int((await connection.execute(statement.returning(files.c.id))).scalar_one())


async def sealed(db: Database, *, file_id: int, size_bytes: int, parts: int) -> None:
    """All parts are there: how many, and how large together."""
    async with db.write() as connection:
        statement = sa.update(files).where(files.c.id == file_id)
        await connection.execute(statement.values(bytes=size_bytes, parts=parts))


async def settle(db: Database, file_id: int, values: Mapping[str, Any]) -> None:
    """A file that came in is one that its owner sees: `values` are its columns."""
    async with db.write() as connection:
        await connection.execute(sa.update(files).where(files.c.id == file_id).values(dict(values)))


async def store_bytes(db: Database, data: bytes, *, filename: str, purpose: str, tenant_id: int, now: float) -> str:
    """A whole file at once, where its content is in memory anyway. Returns its public id."""
    slices = [data[i : i + SLICE_BYTES] for i in range(0, len(data), SLICE_BYTES)]
    packed = await asyncio.to_thread(lambda: [pack(each) for each in slices])
    public_id = new_public_id("file-")
    async with db.write() as connection:
        statement = sa.insert(files).values(
            public_id=public_id, tenant_id=tenant_id, filename=filename, purpose=purpose, created_at=now,
            status=FileStatus.PROCESSED.value, bytes=len(data), parts=len(slices),
        )  # fmt: skip
        file_id = (await connection.execute(statement.returning(files.c.id))).scalar_one()
        rows = [(file_id, part, None, None, None, *each) for part, each in enumerate(packed)]
        await db.insert(connection, file_parts, PART_COLUMNS, rows)
    return public_id


async def by_id(db: Database, file_id: int) -> FileRow:
    """A file whatever its status, deleted ones too. Raises NotFound where it has left the database."""
    async with db.read() as connection:
        row = (await connection.execute(sa.select(*_COLUMNS).where(files.c.id == file_id))).one_or_none()
    if row is None:
        raise NotFound("the file was deleted")
    return _row(row)


async def get(db: Database, public_id: str, *, tenant_id: int, now: float) -> FileRow | None:
    """The tenant's file with this public id; None where there is none that it sees."""
    if not is_public_id(public_id):
        return None
    statement = sa.select(*_COLUMNS).where(files.c.public_id == public_id, _there(tenant_id, now))
    async with db.read() as connection:
        row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _row(row)


async def listed(
    db: Database,
    *,
    tenant_id: int,
    now: float,
    purpose: str | None = None,
    after: int | None = None,
    limit: int | None = None,
    ascending: bool = False,
) -> list[FileRow]:
    """The tenant's files, the newest first unless `ascending`; those that follow the one with the id `after`."""
    statement = sa.select(*_COLUMNS).where(_there(tenant_id, now)).limit(limit)
    if purpose is not None:
        statement = statement.where(files.c.purpose == purpose)
    if after is not None:
        statement = statement.where(files.c.id > after if ascending else files.c.id < after)
    statement = statement.order_by(files.c.id.asc() if ascending else files.c.id.desc())
    async with db.read() as connection:
        return [_row(row) for row in await connection.execute(statement)]


async def delete(db: Database, file_id: int, *, now: float) -> bool:
    """Gone for its owner; False where it was already. Its parts go when no unfinished batch needs them."""
    statement = sa.update(files).where(files.c.id == file_id, files.c.deleted_at.is_(None)).values(deleted_at=now)
    async with db.write() as connection:
        return bool((await connection.execute(statement)).rowcount)


async def find(db: Database, public_id: str, *, tenant_id: int | None = None) -> int | None:
    """The id of the file with this public id; with `tenant_id`, only where that tenant may use it."""
    if not is_public_id(public_id):
        return None
    statement = sa.select(files.c.id).where(
        files.c.public_id == public_id, files.c.status != FileStatus.PENDING.value, files.c.batch_id.is_(None)
    )
    if tenant_id is not None:
        statement = statement.where(files.c.tenant_id == tenant_id, files.c.deleted_at.is_(None))
    async with db.read() as connection:
        return (await connection.execute(statement)).scalar()


async def content(db: Database, file_id: int, start: int = 0) -> AsyncIterator[bytes]:
    """The file's content from byte `start` on, part by part; some megabytes are held at once, however large it is."""
    after = -1
    if start and await _is_sliced(db, file_id):
        after = start // SLICE_BYTES - 1
        start %= SLICE_BYTES
    while (last := await _last_of_group(db, file_id, after)) is not None:
        statement = (
            sa.select(file_parts.c.encoding, file_parts.c.data)
            .where(file_parts.c.file_id == file_id, file_parts.c.part > after, file_parts.c.part <= last)
            .order_by(file_parts.c.part)
        )
        async with db.read() as connection:
            rows = (await connection.execute(statement)).all()
        for encoding, data in rows:
            whole = unpack(encoding, data)
            if start >= len(whole):
                start -= len(whole)
                continue
            yield whole[start:] if start else whole
            start = 0
        after = last


async def _is_sliced(db: Database, file_id: int) -> bool:
    """Are all parts but the last of one size? Then a byte's part is known."""
    first = sa.select(file_parts.c.line).where(file_parts.c.file_id == file_id, file_parts.c.part == 0)
    async with db.read() as connection:
        row = (await connection.execute(first)).one_or_none()
    return row is not None and row.line is None


async def _last_of_group(db: Database, file_id: int, after: int) -> int | None:
    """The last of the parts to read next; None: there are none. Sizes are read without the data."""
    statement = (
        sa.select(file_parts.c.part, sa.func.length(file_parts.c.data))
        .where(file_parts.c.file_id == file_id, file_parts.c.part > after)
        .order_by(file_parts.c.part)
        .limit(_PARTS_AT_ONCE)
    )
    last, total = None, 0
    async with db.read() as connection:
        for part, size in await connection.execute(statement):
            total += size
            if last is not None and total > _BYTES_AT_ONCE:
                break
            last = part
    return last


async def custom_ids_at(db: Database, file_id: int, lines: Sequence[int]) -> dict[int, str]:
    """Line number → custom_id, for the lines that have one."""
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(file_parts.c.line, file_parts.c.custom_id).where(
                file_parts.c.file_id == file_id, db.any_of(file_parts.c.line, lines)
            )
        )
        return {line: custom_id for line, custom_id in rows if custom_id is not None}


async def line_at(db: Database, file_id: int, number: int) -> bytes:
    """The line with this number. Raises NotFound."""
    statement = sa.select(file_parts.c.encoding, file_parts.c.data).where(
        file_parts.c.file_id == file_id, file_parts.c.line == number
    )
    async with db.read() as connection:
        row = (await connection.execute(statement.limit(1))).first()
    if row is None:
        raise NotFound(f"the file has no line {number}")
    return unpack(row.encoding, row.data)
