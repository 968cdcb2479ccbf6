"""What is deleted or expired goes when nobody needs it; what results need of it stays."""

import pytest
import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.intake.kept import KeptFile
from promptmill.settings import load
from promptmill.store import files, purge
from promptmill.store.files import FileStatus
from promptmill.tables import attachments, batches, file_parts

NOW = 1_700_000_000.0
LINE = b'{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hi"}]}}\n'


async def kept(db: Database, **values) -> int:
    file = await KeptFile.begin(db, load({}), filename="a.jsonl", tenant_id=1, clock=lambda: NOW)
    await file.feed(LINE)
    whole = await file.finish()
    found = {"purpose": "batch", "status": FileStatus.PROCESSED.value, "parts": whole.parts, "bytes": whole.size_bytes}
    await files.settle(db, file.file_id, {**found, **values})
    return file.file_id


async def batch_of(db: Database, file_id: int, *, finished_at: float | None) -> None:
    async with db.write() as connection:
        made = {"public_id": f"batch_{file_id}", "file_id": file_id, "state": "completed", "source": "x"}
        await connection.execute(
            sa.insert(batches).values(**made, defaults="{}", max_attempts=1, created_at=NOW, finished_at=finished_at)
        )


async def parts(db: Database, file_id: int) -> list[tuple]:
    columns = (file_parts.c.line, file_parts.c.custom_id, file_parts.c.data)
    async with db.read() as connection:
        rows = await connection.execute(sa.select(*columns).where(file_parts.c.file_id == file_id))
        return [tuple(row) for row in rows]


@pytest.mark.parametrize("values", [{"deleted_at": NOW}, {"expires_at": NOW}])
async def test_what_nobody_needs_goes(db: Database, values: dict):
    gone, here = await kept(db, **values), await kept(db, expires_at=NOW + 1)
    assert await purge.purge_files(db, NOW) == 1
    assert await parts(db, gone) == []
    assert await parts(db, here) == [(1, "a", LINE)]
    assert await purge.purge_files(db, NOW) == 0


async def test_an_unfinished_batch_keeps_its_file_and_what_its_lines_name(db: Database):
    used, named = await kept(db, deleted_at=NOW), await kept(db, deleted_at=NOW)
    await batch_of(db, used, finished_at=None)
    async with db.write() as connection:
        row = {"file_id": used, "name": "a.wav", "attached_id": named}
        await connection.execute(sa.insert(attachments).values(row))
    assert await purge.purge_files(db, NOW) == 0
    assert await parts(db, used) == await parts(db, named) == [(1, "a", LINE)]


async def test_a_finished_batch_keeps_lines_and_names_but_no_prompts(db: Database):
    used = await kept(db, deleted_at=NOW)
    await batch_of(db, used, finished_at=NOW)
    assert await purge.purge_files(db, NOW) == 1
    assert await parts(db, used) == [(1, "a", b"")]
    assert await purge.purge_files(db, NOW) == 0


async def test_a_file_whose_process_died_goes_after_days(db: Database):
    file = await KeptFile.begin(db, load({}), filename="a.bin", tenant_id=1, clock=lambda: NOW)
    await file.feed(b"x" * 5_000_000)
    await file.finish()
    assert await purge.purge_files(db, NOW + 3600) == 0
    assert await purge.purge_files(db, NOW + 3 * 86_400) == 1
    assert await parts(db, file.file_id) == []
