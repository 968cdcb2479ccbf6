"""`promptmill tenants`: what each tenant may take of the lanes beside others, and what it uses."""

import asyncio
import json
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cli.change import or_none
from cli.database import existing_database
from cli.handling_options import by_flag
from cli.progress import quantity
from cli.ringing import ring
from promptmill.errors import UsageError
from promptmill.store import pauses, tenant_terms
from promptmill.store import tenants as tenant_store
from promptmill.store.pauses import What
from promptmill.store.tenant_terms import TenantChange, TenantRow, Usage

_Db = Annotated[str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")]
_Name = Annotated[str, typer.Argument(help="The tenant's name.")]
_Cap = Annotated[str | None, typer.Option(metavar="N|none", help="Of all its batches together, at most.")]

tenants = typer.Typer(
    help="Show tenants and what they use; give them shares and caps.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip


@tenants.command("list")
def list_tenants(
    *, as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False, db: _Db = None
) -> None:
    """Show all tenants with their shares, caps and usage."""
    facts = asyncio.run(_facts(db))
    if as_json:
        print(json.dumps({"tenants": facts}, indent=2))
        return
    for each in facts:
        used = each["usage"]
        caps = [f"{each[name]:g} {words}" for name, words in _WORDS.items() if each[name] is not None]
        print(
            f"{each['name']}  weight {each['weight']:g}{''.join(f', at most {cap}' for cap in caps)}"
            f"  {used['batches']:,} batches with {used['jobs']:,} jobs left, {used['in_flight']:,} in flight"
            f"  {quantity(used['prompt_tokens'] + used['completion_tokens'])} tokens so far"
            + ("  paused" if each["paused"] else "")
        )


_WORDS = {
    "max_in_flight": "in flight",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
}


async def _facts(option: str | None) -> list[dict[str, Any]]:
    async with existing_database(option) as db:
        used = await tenant_terms.usage(db)
        paused = {pause.id for pause in await pauses.listed(db) if pause.what is What.TENANT}
        return [_fact(row, used.get(row.id, Usage()), row.id in paused) for row in await tenant_terms.listed(db)]


def _fact(row: TenantRow, used: Usage, is_paused: bool) -> dict[str, Any]:
    facts = asdict(row)
    del facts["id"]
    return {**facts, "paused": is_paused, "usage": asdict(used)}


@tenants.command("set")
def set_tenant(
    name: _Name,
    *,
    weight: Annotated[float | None, typer.Option(help="Its share beside other tenants.")] = None,
    max_in_flight: _Cap = None,
    rpm: _Cap = None,
    tpm: _Cap = None,
    db: _Db = None,
) -> None:
    """Change a tenant's share or caps; one of a new name is made. It takes effect within a second."""
    values: dict[str, Any] = {} if weight is None else {"weight": weight}
    values |= or_none(
        ("max_in_flight", max_in_flight, int), ("requests_per_minute", rpm, float), ("tokens_per_minute", tpm, float)
    )
    if not values:
        raise UsageError("say what is to be changed: --weight, --max-in-flight, --rpm, --tpm")
    asyncio.run(_set(name, TenantChange(**values), db))
    ring(db)
    print(f"changed the tenant {name}")


async def _set(name: str, wanted: TenantChange, option: str | None) -> None:
    async with existing_database(option) as db:
        try:
            tenant_terms.check_change(wanted)  # before one of a new name is made
        except UsageError as error:
            raise by_flag(error) from None
        tenant_id = await tenant_store.ensure(db, name, now=time.time())
        await tenant_terms.change(db, tenant_id=tenant_id, wanted=wanted)


@tenants.command()
def pause(name: _Name, *, db: _Db = None) -> None:
    """Start none of its jobs until it is resumed; calls under way end and are kept."""
    asyncio.run(_pause(name, db))
    ring(db)
    print(f"paused the tenant {name}")


async def _pause(name: str, option: str | None) -> None:
    async with existing_database(option) as db:
        await pauses.pause(db, What.TENANT, (await tenant_terms.find(db, name)).id, now=time.time())


@tenants.command()
def resume(name: _Name, *, db: _Db = None) -> None:
    """Go on with its jobs."""
    asyncio.run(_resume(name, db))
    ring(db)
    print(f"resumed the tenant {name}")


async def _resume(name: str, option: str | None) -> None:
    async with existing_database(option) as db:
        await pauses.resume(db, What.TENANT, (await tenant_terms.find(db, name)).id, now=time.time())
