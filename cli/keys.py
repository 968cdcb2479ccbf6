"""`promptmill keys`: who may come in over HTTP. A key is shown once; what is kept is a digest of it."""

import asyncio
import os
import time
from typing import Annotated

import typer

from cli.database import existing_database
from cli.embedded import opened
from promptmill.errors import UsageError
from promptmill.settings import load
from promptmill.store import tenants

_Db = Annotated[str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")]
_MAX_NAME = 200

keys = typer.Typer(
    help="Make, list and revoke the API keys of the HTTP server.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, so that it is known again.")],
    *,
    tenant: Annotated[str, typer.Option(help="Whose key: tenants do not see each other's files and jobs.")] = "default",
    admin: Annotated[
        bool, typer.Option("--admin", help="May also control lanes and tenants, and read /metrics.")
    ] = False,
    db: _Db = None,
) -> None:
    """Make a key and show it, once. From the first key on the server serves nobody without one."""
    for what, value in (("the name", name), ("--tenant", tenant)):
        if not value.strip() or len(value) > _MAX_NAME or not value.isprintable():
            raise UsageError(f"{what} must have 1 to {_MAX_NAME} printable characters")
    print(asyncio.run(_create(name, tenant, db, is_admin=admin)))


async def _create(name: str, tenant: str, option: str | None, *, is_admin: bool) -> str:
    async with opened(load(os.environ, database_url=option).database_url) as db:
        return await tenants.create_key(db, tenant=tenant, name=name, is_admin=is_admin, now=time.time())


@keys.command("list")
def list_keys(*, db: _Db = None) -> None:
    """Show the keys: never their secrets."""
    rows = asyncio.run(_list(db))
    if not rows:
        print("no keys yet: the server serves only its own machine; make one with: promptmill keys create NAME")
    for row in rows:
        made = time.strftime("%Y-%m-%d", time.gmtime(row.created_at))
        notes = "".join([" admin" if row.is_admin else "", " revoked" if row.revoked_at is not None else ""])
        print(f"{row.public_id}  {row.tenant}  {made}  {row.name}{notes}")


async def _list(option: str | None) -> list[tenants.KeyRow]:
    async with existing_database(option) as db:
        return await tenants.keys(db)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id as `list` shows it; or the key itself.")], *, db: _Db = None
) -> None:
    """Make a key open nothing any more. It takes effect within seconds, also on servers that run."""
    public_id = key.removeprefix("pm_").partition("_")[0]
    asyncio.run(_revoke(public_id, db))
    print(f"revoked {public_id}")


async def _revoke(public_id: str, option: str | None) -> None:
    async with existing_database(option) as db:
        await tenants.revoke_key(db, public_id, now=time.time())
