"""`promptmill migrate`: brings a database's tables up to date. A server's are never changed without being asked."""

import asyncio
import os
from typing import Annotated

import sqlalchemy as sa
import typer

from promptmill import schema
from promptmill.engine import Database
from promptmill.errors import StoreError
from promptmill.settings import load


def migrate(
    db: Annotated[
        str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")
    ] = None,
) -> None:
    """Bring the database's tables up to date; does nothing when they are. Several at once do no harm."""
    print(asyncio.run(migrated(load(os.environ, database_url=db).database_url)))


async def migrated(url: str) -> str:
    """Do it; returns what was done, in words. Raises StoreError."""
    db = Database(url)
    where = db.url.set(drivername=db.url.get_backend_name()).render_as_string(hide_password=True)
    try:
        found = await schema.version(db)
        if found != schema.HEAD:
            found = await schema.migrate(db)
    except OSError as error:
        raise StoreError(f"cannot open {where}: {error.strerror or error}") from error
    except sa.exc.DBAPIError as error:
        words = str(error.orig).partition("\n")[0]
        raise StoreError(f"cannot migrate {where}: {words}") from error
    finally:
        await db.aclose()
    if found == schema.HEAD:
        return f"schema {schema.HEAD} is current: {where}"
    return f"schema {found or 'none'} → {schema.HEAD}: {where}"
