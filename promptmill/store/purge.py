"""What is deleted or expired leaves the database, as soon as no unfinished batch and no schedule needs it.

Every step may be repeated and may be interrupted: what is left is found the next time.
"""

from typing import Final

import sqlalchemy as sa

from promptmill.content import PLAIN
from promptmill.engine import Database
from promptmill.store import uploads as upload_store
from promptmill.store.files import FileStatus
from promptmill.tables import attachments, batches, file_parts, files, schedules, upload_parts, uploads

#: Files that one call looks at, and parts that one transaction removes.
_FILES_AT_ONCE: Final = 200
_PARTS_AT_ONCE: Final = 2_000
#: A file on its way in for so long is not: its process died.
_ABANDONED_SECONDS: Final = 48 * 3600.0


async def purge_files(db: Database, now: float) -> int:
    """Remove what may go; returns how many files went. There may be more: call it again when it is not 0."""
    await _purge_uploads(db, now)
    done = 0
    for file_id in await _disposable(db, now):
        if await _used_by_a_batch(db, file_id):
            await _blank(db, file_id)
        else:
            await remove(db, file_id)
        done += 1
    return done


async def remove(db: Database, file_id: int) -> None:
    """The file and its parts, whoever uses it."""
    while True:
        some = sa.select(file_parts.c.part).where(file_parts.c.file_id == file_id)
        some = some.order_by(file_parts.c.part).limit(_PARTS_AT_ONCE)
        statement = sa.delete(file_parts).where(file_parts.c.file_id == file_id, file_parts.c.part.in_(some))
        async with db.write() as connection:
            if not (await connection.execute(statement)).rowcount:
                break
    async with db.write() as connection:
        await connection.execute(sa.delete(attachments).where(attachments.c.attached_id == file_id))
        await connection.execute(sa.delete(files).where(files.c.id == file_id))


async def _disposable(db: Database, now: float) -> list[int]:
    """Files that nobody sees any more, and that no unfinished batch and no schedule needs."""
    unfinished = batches.c.finished_at.is_(None)
    needed = sa.exists().where(batches.c.file_id == files.c.id, unfinished)
    named = sa.exists().where(
        attachments.c.attached_id == files.c.id, attachments.c.file_id == batches.c.file_id, unfinished
    )
    scheduled = sa.exists().where(schedules.c.file_id == files.c.id, schedules.c.removed_at.is_(None))
    gone = sa.or_(files.c.deleted_at.is_not(None), files.c.expires_at <= now)
    held = sa.exists().where(batches.c.file_id == files.c.id)
    # What was blanked has no parts by its own word; what was never used by a batch goes altogether.
    left = sa.or_(files.c.parts > 0, sa.not_(held))
    abandoned = sa.and_(
        files.c.status == FileStatus.PENDING.value,
        files.c.created_at < now - _ABANDONED_SECONDS,
        sa.not_(sa.exists().where(uploads.c.file_id == files.c.id)),
    )
    statement = (
        sa.select(files.c.id)
        .where(files.c.batch_id.is_(None), sa.or_(sa.and_(gone, left), abandoned), sa.not_(needed), sa.not_(named))
        .where(sa.not_(scheduled))
        .order_by(files.c.id)
        .limit(_FILES_AT_ONCE)
    )
    async with db.read() as connection:
        return list((await connection.execute(statement)).scalars())


async def _used_by_a_batch(db: Database, file_id: int) -> bool:
    statement = sa.select(batches.c.id).where(batches.c.file_id == file_id).limit(1)
    async with db.read() as connection:
        return (await connection.execute(statement)).scalar() is not None


async def _blank(db: Database, file_id: int) -> None:
    """Lines and custom_ids are part of the batch's results; what was asked goes."""
    after = -1
    while True:
        some = sa.select(file_parts.c.part).where(file_parts.c.file_id == file_id, file_parts.c.part > after)
        some = some.order_by(file_parts.c.part).limit(_PARTS_AT_ONCE)
        async with db.write() as connection:
            found = (await connection.execute(some)).scalars().all()
            if not found:
                break
            statement = sa.update(file_parts).where(
                file_parts.c.file_id == file_id, file_parts.c.part > after, file_parts.c.part <= found[-1]
            )
            await connection.execute(statement.values(data=b"", encoding=PLAIN))
        after = found[-1]
    async with db.write() as connection:
        await connection.execute(sa.update(files).where(files.c.id == file_id).values(parts=0))


async def _purge_uploads(db: Database, now: float) -> None:
    """Uploads past their time, with their pieces, and with their file where that never became whole."""
    statement = sa.select(uploads.c.id, uploads.c.file_id).where(uploads.c.expires_at <= now).limit(_FILES_AT_ONCE)
    async with db.read() as connection:
        late = (await connection.execute(statement)).all()
    for upload_id, file_id in late:
        await remove_parts(db, upload_id)
        async with db.write() as connection:
            await connection.execute(sa.delete(uploads).where(uploads.c.id == upload_id))
            never = sa.delete(files).where(files.c.id == file_id, files.c.status == FileStatus.PENDING.value)
            await connection.execute(never)


async def remove_parts(db: Database, upload_id: int) -> None:
    """The pieces of an upload that is complete or given up."""
    for part in await upload_store.parts(db, upload_id):
        async with db.write() as connection:
            await connection.execute(sa.delete(upload_parts).where(upload_parts.c.id == part.id))
        await remove(db, part.file_id)
