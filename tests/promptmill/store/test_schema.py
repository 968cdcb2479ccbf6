"""The migrations make the tables that the code describes, on both databases."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from promptmill import migrations, schema
from promptmill.engine import Database
from promptmill.errors import SettingsError, StoreError
from promptmill.tables import PREFIX, metadata


async def test_migrations_and_tables_agree(db):
    def difference(connection):
        context = MigrationContext.configure(connection, opts={"version_table": PREFIX + "schema"})
        return [change for change in compare_metadata(context, metadata) if not _is_version_table(change)]

    async with db.read() as connection:
        assert await connection.run_sync(difference) == []
    assert await schema.version(db) == schema.HEAD


def _is_version_table(change) -> bool:
    return change[0] == "remove_table" and change[1].name == PREFIX + "schema"


def test_head_is_the_newest_file():
    versions = Path(migrations.__file__).parent / "versions"
    assert max(path.name[:4] for path in versions.glob("0*.py")) == schema.HEAD


async def test_sqlite_is_brought_up_to_date_by_opening_it(tmp_path):
    db = Database(str(tmp_path / "new.sqlite3"))
    assert await schema.version(db) is None
    await asyncio.gather(schema.ensure(db), schema.ensure(db))
    assert await schema.version(db) == schema.HEAD
    await db.aclose()


async def test_a_server_is_never_migrated_behind_its_operators_back(postgres_url):
    db = Database(postgres_url)
    with pytest.raises(StoreError, match="promptmill migrate"):
        await schema.ensure(db)
    await db.aclose()


async def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear Sir or Madam, " * 100)
    with pytest.raises(StoreError, match="not a SQLite database"):
        Database(str(path))
    assert path.read_bytes() == b"Dear Sir or Madam, " * 100


async def test_a_newer_schema_is_refused(sqlite_db):
    async with sqlite_db.write() as connection:
        await connection.execute(
            sa.table(f"{PREFIX}schema", sa.column("version_num")).update().values(version_num="9999")
        )
    with pytest.raises(StoreError, match="newer promptmill"):
        await schema.ensure(sqlite_db)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://x", "not supported"),
        ("postgresql://user:secret@host:port/x", "cannot be read"),
        (":memory:", "name a file"),
        ("/no/such/folder/x.sqlite3", "does not exist"),
    ],
)
def test_unusable_urls_say_what_to_do_and_never_repeat_a_password(url, words):
    with pytest.raises(SettingsError, match=words) as caught:
        Database(url)
    assert "secret" not in str(caught.value)
