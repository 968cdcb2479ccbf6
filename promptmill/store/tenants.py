"""Who may come in over HTTP: tenants and their API keys. Of a key's secret only a digest is kept.

A key is `pm_<12 hex: which key>_<43 characters: its secret>`. The secret has 256 random bits, so one SHA-256 is as good
as any slow hash: those are for what people can remember.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.errors import NotFound, UsageError
from promptmill.tables import api_keys, tenants

_KEY: Final = re.compile(r"pm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_MAX_NAME: Final = 200
#: Compared with when there is no such key, so that this takes as long.
_NOBODY: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key as people may see it."""

    public_id: str
    tenant: str
    name: str
    is_admin: bool
    created_at: float
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a key is."""

    key_id: int
    tenant_id: int
    is_admin: bool


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def ensure(db: Database, name: str, *, now: float) -> int:
    """The tenant's id; made where the name is new. Raises UsageError for what is no name."""
    async with db.write() as connection:
        return await _ensured(connection, name, now)


async def _ensured(connection: AsyncConnection, name: str, now: float) -> int:
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(f"a tenant's name must have 1 to {_MAX_NAME} printable characters")
    found = sa.select(tenants.c.id).where(tenants.c.name == name)
    tenant_id = (await connection.execute(found)).scalar()
    if tenant_id is None:
        if "/" in name or name in (".", ".."):  # only new ones: others have their batches
            raise UsageError(
                "a tenant's name is a part of addresses (/v1/tenants/NAME); leave / and a bare . out of it"
            )
        try:
            async with connection.begin_nested():
                await connection.execute(sa.insert(tenants).values(name=name, created_at=now))
        except sa.exc.IntegrityError:
            pass  # another process made it at the same moment
        tenant_id = (await connection.execute(found)).scalar_one()
    return int(tenant_id)


async def create_key(db: Database, *, tenant: str, name: str, is_admin: bool, now: float) -> str:
    """A new key for the tenant of this name, who is made where new. Returns the key: it is shown this once."""
    public_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    async with db.write() as connection:
        tenant_id = await _ensured(connection, tenant, now)
        await connection.execute(
            sa.insert(api_keys).values(
                public_id=public_id,
                tenant_id=tenant_id,
                name=name,
                digest=_digest(secret),
                is_admin=is_admin,
                created_at=now,
            )
        )
    return f"pm_{public_id}_{secret}"


async def keys(db: Database) -> list[KeyRow]:
    """All keys, the oldest first."""
    statement = (
        sa.select(api_keys.c.public_id, tenants.c.name, api_keys.c.name, api_keys.c.is_admin, api_keys.c.created_at,
                  api_keys.c.revoked_at)
        .join(tenants, tenants.c.id == api_keys.c.tenant_id)
        .order_by(api_keys.c.id)
    )  # fmt: skip
    async with db.read() as connection:
        return [KeyRow(*row) for row in await connection.execute(statement)]


async def revoke_key(db: Database, public_id: str, *, now: float) -> None:
    """From now on the key opens nothing. Revoking twice changes nothing. Raises NotFound."""
    async with db.write() as connection:
        found = sa.select(api_keys.c.id).where(api_keys.c.public_id == public_id)
        if (await connection.execute(found)).scalar() is None:
            raise NotFound(f"no key {public_id!r}")
        statement = sa.update(api_keys).where(api_keys.c.public_id == public_id, api_keys.c.revoked_at.is_(None))
        await connection.execute(statement.values(revoked_at=now))


async def any_key(db: Database) -> bool:
    """Was a key ever made? A revoked one counts: taking the last key away must not open the door to everybody."""
    async with db.read() as connection:
        return (await connection.execute(sa.select(api_keys.c.id).limit(1))).scalar() is not None


async def holder(db: Database, key: str) -> Holder | None:
    """Whose key this is; None where it is nobody's. Takes as long for a key that is nearly right."""
    parts = _KEY.fullmatch(key)
    public_id, secret = parts.groups() if parts else ("", "")
    statement = sa.select(
        api_keys.c.id, api_keys.c.tenant_id, api_keys.c.is_admin, api_keys.c.digest, api_keys.c.revoked_at
    ).where(api_keys.c.public_id == public_id)
    async with db.read() as connection:
        row = (await connection.execute(statement)).one_or_none()
    matches = hmac.compare_digest(_digest(secret), row.digest if row is not None else _NOBODY)
    if row is None or not matches or row.revoked_at is not None:
        return None
    return Holder(row.id, row.tenant_id, row.is_admin)
