"""What each tenant may take of the lanes beside others, and what it has taken."""

from dataclasses import dataclass, fields
from typing import Any, Final

import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from promptmill.engine import Database
from promptmill.errors import NotFound
from promptmill.handling import Handling, check
from promptmill.job import State
from promptmill.store.rows import in_state
from promptmill.tables import batches, jobs, tenants


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant, its share of a lane, and the caps of all its batches together; None: no cap."""

    id: int
    name: str
    created_at: float
    weight: float
    max_in_flight: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has and had."""

    #: Not finished.
    batches: int = 0
    jobs: int = 0
    in_flight: int = 0
    #: Since its first batch.
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantChange:
    """What is to be other than it was. UNSET: as it is; None: no cap any more."""

    weight: float | UnsetType = UNSET
    max_in_flight: int | UnsetType | None = UNSET
    requests_per_minute: float | UnsetType | None = UNSET
    tokens_per_minute: float | UnsetType | None = UNSET

    @property
    def given(self) -> dict[str, Any]:
        """Field → its new value."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not UNSET}


_COLUMNS: Final = tuple(tenants.c[name] for name in TenantRow.__dataclass_fields__)


async def listed(db: Database) -> list[TenantRow]:
    """All of them, the oldest first."""
    async with db.read() as connection:
        rows = await connection.execute(sa.select(*_COLUMNS).order_by(tenants.c.id))
        return [TenantRow(*row) for row in rows]


async def find(db: Database, name: str) -> TenantRow:
    """The tenant of this name. Raises NotFound, naming those that there are."""
    async with db.read() as connection:
        row = (await connection.execute(sa.select(*_COLUMNS).where(tenants.c.name == name))).one_or_none()
    if row is None:
        known = ", ".join(repr(each.name) for each in (await listed(db))[:_NAMES_SHOWN])
        raise NotFound(f"no tenant {name[:100]!r}; there are {known}")
    return TenantRow(*row)


_NAMES_SHOWN: Final = 20


def check_change(wanted: TenantChange) -> None:
    """Raise UsageError, beginning with the field's name, for what makes no sense."""
    check(Handling(**wanted.given))


async def change(db: Database, *, tenant_id: int, wanted: TenantChange) -> None:
    """Change its share or its caps, for all workers from their next look on. Raises UsageError."""
    check_change(wanted)
    if wanted.given:
        async with db.write() as connection:
            await connection.execute(sa.update(tenants).where(tenants.c.id == tenant_id).values(wanted.given))


async def usage(db: Database) -> dict[int, Usage]:
    """Tenant id → what it has and had, for those that ever had a batch."""
    unfinished = batches.c.finished_at.is_(None)
    done = batches.c.succeeded + batches.c.failed + batches.c.cancelled + batches.c.expired + batches.c.invalid
    sums = sa.select(
        batches.c.tenant_id,
        sa.func.sum(sa.case((unfinished, 1), else_=0)),
        sa.func.sum(sa.case((unfinished, batches.c.total - done), else_=0)),
        sa.func.sum(batches.c.prompt_tokens),
        sa.func.sum(batches.c.completion_tokens),
    ).group_by(batches.c.tenant_id)
    running = (
        sa.select(batches.c.tenant_id, sa.func.count().label("calls"))
        .select_from(jobs.join(batches, batches.c.id == jobs.c.batch_id))
        .where(in_state(State.RUNNING))
        .group_by(batches.c.tenant_id)
    )
    async with db.read() as connection:
        in_flight = {row.tenant_id: row.calls for row in await connection.execute(running)}
        return {
            tenant_id: Usage(int(count), int(left), in_flight.get(tenant_id, 0), int(prompt), int(completion))
            for tenant_id, count, left, prompt, completion in await connection.execute(sums)
        }
