"""The tables' version: SQLite files are brought up to date when they are opened, PostgreSQL by `promptmill migrate`.

A server's schema is not changed behind its operator's back: there, being behind is an error that names the command.
"""

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.errors import StoreError
from promptmill.tables import PREFIX

#: The newest migration; a test compares it with the files.
HEAD: Final = "0004"

_VERSION = sa.text(f"SELECT version_num FROM {PREFIX}schema")  # noqa: S608 - our own constant


async def version(db: Database) -> str | None:
    """The schema's version; None for a database that promptmill has not used yet."""
    try:
        async with db.read() as connection:
            return (await connection.execute(_VERSION)).scalar()
    except sa.exc.DatabaseError as error:
        words = str(error.orig).lower()
        if "no such table" in words or "does not exist" in words:
            return None
        raise


async def ensure(db: Database) -> None:
    """Make the database usable, or say what to do. Raises StoreError."""
    found = await version(db)
    if found == HEAD:
        return
    _refuse_newer(found)
    if not db.is_sqlite:
        raise StoreError(f"the database schema is {found or 'missing'}, {HEAD} is needed; run: promptmill migrate")
    await migrate(db)


def _refuse_newer(found: str | None) -> None:
    if found is not None and found > HEAD:
        raise StoreError(
            f"the database was made by a newer promptmill (schema {found}, this one knows {HEAD}); upgrade"
        )


async def migrate(db: Database) -> str | None:
    """Bring the schema up to date; returns the version it had. Safe when several processes ask at once."""
    # Alembic takes a tenth of a second to import, and is needed once in the life of a database.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    found = await version(db)
    _refuse_newer(found)

    def upgrade(connection: sa.Connection) -> None:
        if not db.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('promptmill migrate'))"))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        attributes: dict[str, Any] = config.attributes
        attributes["connection"] = connection
        command.upgrade(config, "head")

    async with db.write() as connection:
        await connection.run_sync(upgrade)
    return found
