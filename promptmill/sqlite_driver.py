"""aiosqlite with one trip to its thread for a statement, where it takes four (a cursor, the statement, its rows, the
cursor's end). A trip costs about 0.1 ms of waiting for threads to wake, which is what a gateway's call is made of.

Rows are fetched at once: SQLAlchemy would hold all of them in memory anyway.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Self

import aiosqlite


class OneTripConnection(aiosqlite.Connection):
    """An aiosqlite connection whose cursors are as SQLAlchemy uses them: one statement each."""

    def cursor(self) -> "OneTripCursor":  # type: ignore[override]  # as much of a cursor as SQLAlchemy needs
        """A cursor for one statement."""
        return OneTripCursor(self)

    async def in_thread(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Do this where the connection lives."""
        return await self._execute(work, self._conn)  # type: ignore[no-untyped-call]  # as aiosqlite has it


class OneTripCursor:
    """A statement, and its rows."""

    def __init__(self, connection: OneTripConnection) -> None:
        self._connection = connection
        self._rows: Sequence[Any] = ()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Any = ()) -> Self:
        """Run it."""

        def run(connection: sqlite3.Connection) -> sqlite3.Cursor:
            cursor = connection.execute(statement, parameters)
            self._rows = cursor.fetchall() if cursor.description is not None else ()
            cursor.close()
            return cursor

        self._done(await self._connection.in_thread(run))
        return self

    async def executemany(self, statement: str, rows: Any) -> Self:
        """Run it for each of these."""

        def run(connection: sqlite3.Connection) -> sqlite3.Cursor:
            cursor = connection.executemany(statement, rows)
            cursor.close()
            return cursor

        self._done(await self._connection.in_thread(run))
        return self

    async def fetchall(self) -> Sequence[Any]:
        """The rows."""
        return self._rows

    async def close(self) -> None:
        """It is closed already."""

    def _done(self, cursor: sqlite3.Cursor) -> None:
        self.description = cursor.description
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid


async def connect(path: str, *, busy_seconds: float) -> OneTripConnection:
    """A connection to a database file; `busy_seconds` is how long it waits for another process's write."""

    def open_file() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=busy_seconds, check_same_thread=False)

    connection = OneTripConnection(open_file, iter_chunk_size=64)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does: a connection must not keep a process alive
    await connection
    return connection
