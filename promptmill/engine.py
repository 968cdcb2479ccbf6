"""The only file that knows PostgreSQL from SQLite: connections, transactions, bulk inserts, sums, lists as
parameters.

SQLite runs in WAL mode with one writer: `write()` takes the write lock when it begins, so that a transaction never
fails half way because another one got there first. PostgreSQL runs READ COMMITTED; rows that are about to be moved are
locked by the statement that picks them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from promptmill import sqlite_driver
from promptmill.errors import SettingsError, StoreError

#: How long one process waits for another one's write to a SQLite file, before it says so.
SQLITE_BUSY_SECONDS = 30.0

#: Rows a statement carries at most. Large enough to be fast, small enough to keep memory flat.
ROWS_PER_STATEMENT = 5_000

_WRITE = "promptmill_write"
_SQLITE_BEGINS = b"SQLite format 3\0"


def database_url(value: str) -> sa.URL:
    """The URL of `--db` or PROMPTMILL_DATABASE_URL: a path means a SQLite file; drivers are ours to choose.

    >>> str(database_url("jobs.sqlite3"))
    'sqlite+aiosqlite:///jobs.sqlite3'
    >>> database_url("postgres://u@h/d").drivername
    'postgresql+asyncpg'
    """
    if "://" not in value:
        return sa.URL.create("sqlite+aiosqlite", database=value)
    try:
        url = sa.make_url(value)
    except (sa.exc.ArgumentError, ValueError):
        # The value is not repeated: it may hold a password.
        raise SettingsError("the database URL cannot be read; try a file name or postgresql://user@host/name") from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise SettingsError(f"the database {backend!r} is not supported; use a SQLite file or a postgresql:// URL")


class Database:
    """One database, opened. Statements are written once; what differs between the two kinds stays in here."""

    def __init__(self, url: str, *, pool_size: int = 8, transaction_idle_seconds: float | None = None) -> None:
        """`transaction_idle_seconds` is for workers: one that stands still in the middle of a transaction (or whose
        machine is gone) holds locks that others wait for, and so long does PostgreSQL let it."""
        self.url = database_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._write_lock = asyncio.Lock()
        if self.is_sqlite:
            path = self.url.database
            if not path or path == ":memory:":
                raise SettingsError("a database in memory forgets what it was given; name a file")
            _check_sqlite_file(Path(path))
            self.engine: AsyncEngine = create_async_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=-1,
                pool_reset_on_return=None,  # every transaction is ended where it began; it would be one trip more
                async_creator=lambda: sqlite_driver.connect(path, busy_seconds=SQLITE_BUSY_SECONDS),
            )
            sa.event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        else:
            self.engine = create_async_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=8,
                pool_pre_ping=True,  # a restarted server costs one ping, not one failed claim
                connect_args={"server_settings": _server_settings(transaction_idle_seconds)},
            )

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from; each statement sees what is committed when it begins."""
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back if the block raises."""
        if not self.is_sqlite:
            async with self.engine.begin() as connection:
                yield connection
            return
        async with self._write_lock, self.engine.connect() as connection:
            await connection.execution_options(**{_WRITE: True})
            async with connection.begin():
                yield connection

    async def aclose(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    def any_of(self, column: "sa.ColumnElement[Any]", values: Iterable[int]) -> "sa.ColumnElement[bool]":
        """`column IN (values)` with one parameter however many values: the statement is prepared once."""
        if self.is_sqlite:
            rows = sa.func.json_each(sa.bindparam(None, json.dumps(list(values)))).table_valued("value")
            return column.in_(sa.select(rows.c.value))
        return column == sa.any_(sa.bindparam(None, list(values), type_=sa.ARRAY(sa.BigInteger)))

    async def insert(
        self, connection: AsyncConnection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """Insert many rows at once: COPY on PostgreSQL, one prepared statement on SQLite."""
        if not rows:
            return
        if self.is_sqlite:
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            await connection.exec_driver_sql(
                f"INSERT INTO {table.name} ({names}) VALUES ({marks})",  # noqa: S608 - names are our own tables'
                list(rows),
            )
            return
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        if not driver.is_in_transaction():
            await connection.exec_driver_sql(
                "SELECT 1"
            )  # the transaction begins with the first statement, not with COPY
        await driver.copy_records_to_table(table.name, records=rows, columns=list(columns))

    async def insert_unknown(
        self, connection: AsyncConnection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """Insert those that are not there yet, by any key. COPY knows no conflicts, so `insert` is a little faster."""
        if not rows:
            return
        marks = ["?" if self.is_sqlite else f"${number}" for number in range(1, len(columns) + 1)]
        await connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join(marks)}) "  # noqa: S608 - names are ours
            "ON CONFLICT DO NOTHING",
            list(rows),
        )

    async def add_up(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows of all columns to running sums: a row that is there, by its primary key, grows by the other columns.

        Row by row in the order given, so that the caller decides in which order they are locked.
        """
        if not rows:
            return
        names = table.columns.keys()
        marks = ["?" if self.is_sqlite else f"${number}" for number in range(1, len(names) + 1)]
        keys = table.primary_key.columns.keys()
        grown = [f"{name} = {table.name}.{name} + excluded.{name}" for name in names if name not in keys]
        await connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(marks)}) "  # noqa: S608 - names are ours
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(grown)}",
            list(rows),
        )


def is_conflict(error: BaseException) -> bool:
    """Is it that a row is there already, by a key? What COPY raises goes past SQLAlchemy."""
    return isinstance(error, (sa.exc.IntegrityError, asyncpg.UniqueViolationError))


def _server_settings(transaction_idle_seconds: float | None) -> dict[str, str]:
    settings = {"application_name": "promptmill", "jit": "off"}
    if transaction_idle_seconds is not None:
        settings["idle_in_transaction_session_timeout"] = f"{transaction_idle_seconds:g}s"
    return settings


def _check_sqlite_file(path: Path) -> None:
    """Raises SettingsError or StoreError for what SQLite could not open, in words that help more than its own."""
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"cannot open {path}: the folder {path.absolute().parent} does not exist")
    try:
        with path.open("rb") as file:
            begins = file.read(len(_SQLITE_BEGINS))
    except FileNotFoundError:
        return  # it will be made
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error
    if begins and begins != _SQLITE_BEGINS:
        raise StoreError(f"{path} is not a SQLite database; give another --db")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the begin event decides what kind of transaction it is
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
    except Exception:
        connection.close()  # else the driver's thread outlives the loop
        raise
    # An answer that is recorded is on the disk, power cut or not; some commits a second cost nothing measurable.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA cache_size = -8000")
    cursor.execute("PRAGMA temp_store = MEMORY")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A statement that only reads is a transaction by itself, as on PostgreSQL (READ COMMITTED).
    if connection.get_execution_options().get(_WRITE, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
