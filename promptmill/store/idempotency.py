"""Requests that may be sent again: a key is taken, then bears what its request made, and is forgotten after a day."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.tables import idempotency_keys

KEPT_SECONDS: Final = 86_400.0
#: A request that has made nothing by then died with its process; whoever sends it again makes it.
ABANDONED_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What a key was found to be. `resource` is what its request made (JSON); None while that is being made."""

    digest: str
    resource: str | None


async def take(db: Database, *, tenant_id: int, key: str, digest: str, now: float) -> Taken | None:
    """Take the key for a request with this digest. None: it is the caller's now, who has to `keep` or `drop` it."""
    mine = sa.and_(idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == key)
    async with db.write() as connection:
        row = (await connection.execute(sa.select(idempotency_keys).where(mine).with_for_update())).one_or_none()
        if row is not None:
            age = now - row.created_at
            if age < (ABANDONED_SECONDS if row.resource is None else KEPT_SECONDS):
                return Taken(row.digest, row.resource)
            again = sa.update(idempotency_keys).where(mine)
            await connection.execute(again.values(digest=digest, resource=None, created_at=now))
            return None
        try:
            async with connection.begin_nested():
                new = {"tenant_id": tenant_id, "key": key, "digest": digest, "created_at": now}
                await connection.execute(sa.insert(idempotency_keys).values(new))
        except sa.exc.IntegrityError:  # another one was first, this very moment
            return Taken(digest, None)
    return None


async def keep(connection: AsyncConnection, *, tenant_id: int, key: str, resource: str) -> None:
    """The request has made this: in the transaction that made it, there is no moment at which only one is known."""
    mine = sa.and_(idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == key)
    await connection.execute(sa.update(idempotency_keys).where(mine).values(resource=resource))


async def drop(db: Database, *, tenant_id: int, key: str) -> None:
    """The request has made nothing; the key is free again."""
    mine = sa.and_(idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == key)
    async with db.write() as connection:
        await connection.execute(sa.delete(idempotency_keys).where(mine, idempotency_keys.c.resource.is_(None)))


async def purge(db: Database, *, now: float) -> int:
    """Forget what is older than a day; returns how many."""
    async with db.write() as connection:
        old = sa.delete(idempotency_keys).where(idempotency_keys.c.created_at < now - KEPT_SECONDS)
        return (await connection.execute(old)).rowcount
