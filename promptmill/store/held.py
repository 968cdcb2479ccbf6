"""Callers who wait for an answer, so that one who went away and sends the same again is given the answer that it left.

Only a request whose caller is gone can be taken up again: because it left, or because the process that held it died.
Two equal requests whose callers both wait are two calls.
"""

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.hints import JobKey
from promptmill.tables import held_requests, leases

#: What was left can be taken up for so long.
LEFT_SECONDS: Final = 600.0
#: A process says so often that it lives, and holds nothing any more when it did not for so long.
SAY_SECONDS: Final = 2.0
HOLDER_SECONDS: Final = 6.0
_KEPT_SECONDS: Final = 3_600.0
_LEASE: Final = "api:"


async def left(db: Database, held_id: int, *, now: float) -> None:
    """Its caller went away."""
    async with db.write() as connection:
        statement = sa.update(held_requests).where(held_requests.c.id == held_id)
        await connection.execute(statement.values(left_at=now))


async def answered(db: Database, held_ids: Iterable[int]) -> None:
    """Their callers have their answers."""
    async with db.write() as connection:
        await connection.execute(sa.delete(held_requests).where(db.any_of(held_requests.c.id, held_ids)))


async def take_up(
    db: Database, *, tenant_id: int, fingerprint: str, holder: str, now: float
) -> tuple[int, JobKey] | None:
    """(id, job) of an equal request whose caller is gone; it is the new caller's from now on. The oldest one first."""
    alive = sa.select(sa.func.substr(leases.c.name, len(_LEASE) + 1)).where(
        leases.c.name.startswith(_LEASE), leases.c.until > now
    )
    found = (
        sa.select(held_requests.c.id, held_requests.c.batch_id, held_requests.c.position)
        .where(held_requests.c.fingerprint == fingerprint, held_requests.c.tenant_id == tenant_id)
        .where(held_requests.c.created_at > now - _KEPT_SECONDS)
        .where(
            sa.or_(
                held_requests.c.left_at > now - LEFT_SECONDS,
                sa.and_(held_requests.c.left_at.is_(None), held_requests.c.holder.not_in(alive)),
            )
        )
        .order_by(held_requests.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    async with db.write() as connection:
        row = (await connection.execute(found)).one_or_none()
        if row is None:
            return None
        taken = sa.update(held_requests).where(held_requests.c.id == row.id)
        await connection.execute(taken.values(left_at=None, holder=holder))
    return row.id, (row.batch_id, row.position)


async def holders(db: Database, *, tenant_id: int, fingerprint: str, now: float) -> dict[str, float]:
    """Who holds an equal request that nobody left → until when that is believed."""
    statement = (
        sa.select(held_requests.c.holder, sa.func.max(leases.c.until))
        .join(leases, leases.c.name == _LEASE + held_requests.c.holder)
        .where(held_requests.c.fingerprint == fingerprint, held_requests.c.tenant_id == tenant_id)
        .where(held_requests.c.left_at.is_(None), leases.c.until > now)
        .group_by(held_requests.c.holder)
    )
    async with db.read() as connection:
        return {row[0]: row[1] for row in await connection.execute(statement)}


async def only_holder(db: Database) -> None:
    """No other process holds anything: on a database file there is one at a time, and this one has just begun."""
    async with db.write() as connection:
        await connection.execute(sa.delete(leases).where(leases.c.name.startswith(_LEASE)))


async def alive(db: Database, holder: str, *, now: float) -> None:
    """This process holds requests, for the next while."""
    name, until = f"{_LEASE}{holder}", now + HOLDER_SECONDS
    async with db.write() as connection:
        renewed = sa.update(leases).where(leases.c.name == name).values(until=until)
        if not (await connection.execute(renewed)).rowcount:
            await connection.execute(sa.insert(leases).values(name=name, owner=holder, until=until))


async def gone(db: Database, holder: str) -> None:
    """This process holds nothing any more."""
    async with db.write() as connection:
        await connection.execute(sa.delete(leases).where(leases.c.name == f"{_LEASE}{holder}"))


async def purge(db: Database, *, now: float) -> None:
    """Forget what nobody will ask for again."""
    async with db.write() as connection:
        await connection.execute(sa.delete(held_requests).where(held_requests.c.created_at < now - _KEPT_SECONDS))
        await connection.execute(
            sa.delete(leases).where(leases.c.name.startswith(_LEASE), leases.c.until < now - _KEPT_SECONDS)
        )
