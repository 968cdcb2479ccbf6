"""For commands that only look: a database that is there already. They make none, and update only outdated tables."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa

from promptmill import schema
from promptmill.engine import Database, database_url
from promptmill.errors import StoreError
from promptmill.settings import load


@asynccontextmanager
async def existing_database(option: str | None) -> AsyncIterator[Database]:
    """The database of `--db`, else of PROMPTMILL_DATABASE_URL, else promptmill.sqlite3 in the current folder.

    Raises StoreError where there is none, or nothing of ours in it; SettingsError for a URL that cannot be read.
    """
    url = database_url(load(os.environ, database_url=option).database_url)
    where = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and url.database:
        where = url.database
        if not _is_file(where):
            raise StoreError(f"no database at {where}; run `promptmill run` first, or name another one with --db")
    db = Database(url.render_as_string(hide_password=False))
    try:
        if await _version(db, where) is None:
            raise StoreError(f"{where} has no promptmill tables; run `promptmill run` first, or give another --db")
        await schema.ensure(db)
        yield db
    finally:
        await db.aclose()


def _is_file(path: str) -> bool:
    return Path(path).is_file()


async def _version(db: Database, where: str) -> str | None:
    try:
        return await schema.version(db)
    except sa.exc.DBAPIError as error:
        words = str(error.orig).partition("\n")[0]
        raise StoreError(f"cannot open {where}: {words}") from error
    except OSError as error:  # asyncpg hands on what the system says
        raise StoreError(f"cannot open {where}: {error.strerror or error}") from error
