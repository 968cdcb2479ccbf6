"""Output and error files: views of a batch's results, made when somebody first asks and there is something in them."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.job import FINISHED, State
from promptmill.store.batches import BatchRow
from promptmill.store.rows import new_public_id
from promptmill.tables import files

View = Literal["output", "errors"]

PURPOSE: Final = "batch_output"
#: After the batch ended, where its producer did not say otherwise.
KEPT_SECONDS: Final = 30 * 86_400

#: The states whose jobs a view has.
STATES: Final[dict[str, frozenset[State]]] = {
    "output": frozenset({State.SUCCEEDED}),
    "errors": FINISHED - {State.SUCCEEDED},
}


def _wanted(batch: BatchRow) -> list[View]:
    counts: list[tuple[View, int]] = [("output", batch.succeeded), ("errors", batch.done - batch.succeeded)]
    return [view for view, count in counts if count]


async def of_batches(db: Database, batches: Sequence[BatchRow], *, now: float) -> dict[tuple[int, View], str]:
    """(batch id, view) → public id of its file, for every view that has a line; what is not there yet is made."""
    wanted = {(batch.id, view): batch for batch in batches for view in _wanted(batch)}
    if not wanted:
        return {}
    ids = {batch_id for batch_id, _ in wanted}
    async with db.read() as connection:
        found = await _found(db, connection, ids)
    # A batch that was taken up again ends again.
    late = {batch.id: batch for key, batch in wanted.items() if found.get(key, ("", None))[1] != _expiry(batch)}
    if late or any(key not in found for key in wanted):
        async with db.write() as connection:
            for (batch_id, view), batch in wanted.items():
                if (batch_id, view) not in found:
                    await _make(connection, batch, view, now)
            for batch in late.values():
                await _set_expiry(connection, batch)
            found = await _found(db, connection, ids)
    return {key: public_id for key, (public_id, _) in found.items() if key in wanted}


async def _found(
    db: Database, connection: AsyncConnection, batch_ids: Iterable[int]
) -> dict[tuple[int, View], tuple[str, float | None]]:
    rows = await connection.execute(
        sa.select(files.c.batch_id, files.c.view, files.c.public_id, files.c.expires_at).where(
            db.any_of(files.c.batch_id, batch_ids)
        )
    )
    return {(batch_id, view): (public_id, expires_at) for batch_id, view, public_id, expires_at in rows}


async def _make(connection: AsyncConnection, batch: BatchRow, view: View, now: float) -> None:
    name = "output" if view == "output" else "error"
    row = {
        "public_id": new_public_id("file-"), "tenant_id": batch.tenant_id, "purpose": PURPOSE, "batch_id": batch.id,
        "filename": f"{batch.public_id}_{name}.jsonl", "view": view, "created_at": now,
    }  # fmt: skip
    try:
        async with connection.begin_nested():
            await connection.execute(sa.insert(files).values(row))
    except sa.exc.IntegrityError:
        pass  # another process was first


def _expiry(batch: BatchRow) -> float | None:
    """So long is a file kept from the moment on at which it is complete."""
    seconds = KEPT_SECONDS if batch.output_expires_seconds is None else batch.output_expires_seconds
    return None if batch.finished_at is None else batch.finished_at + seconds


async def _set_expiry(connection: AsyncConnection, batch: BatchRow) -> None:
    theirs = sa.update(files).where(files.c.batch_id == batch.id, files.c.view.in_(list(STATES)))
    await connection.execute(theirs.values(expires_at=_expiry(batch)))


async def complete(db: Database, batch: BatchRow, *, file_id: int, size_bytes: int) -> None:
    """The batch has ended: how large the file is, and until when it is kept."""
    async with db.write() as connection:
        await connection.execute(sa.update(files).where(files.c.id == file_id).values(bytes=size_bytes))
        await _set_expiry(connection, batch)
