"""What is known about a lane (upstream x model): whether it is good, halted or paused, and how long its answers are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.job import LaneState
from promptmill.store.pauses import What
from promptmill.tables import lanes, pauses


@dataclass(frozen=True, slots=True)
class LaneRow:
    """A lane as the database has it."""

    id: int
    upstream: str
    model: str
    state: LaneState
    reason: str | None
    halt_status: int | None  # with which the upstream said so
    paused_until: float | None
    completion_tokens: float | None
    is_paused: bool  # by hand: the lane itself, or everything


_COLUMNS = (
    lanes.c.id, lanes.c.upstream, lanes.c.model, lanes.c.state, lanes.c.reason, lanes.c.halt_status,
    lanes.c.paused_until, lanes.c.completion_tokens,
    sa.exists().where(
        sa.or_(pauses.c.what == What.ALL, sa.and_(pauses.c.what == What.LANE, pauses.c.id == lanes.c.id))
    ).label("is_paused"),
)  # fmt: skip


def _row(row: Any) -> LaneRow:
    return LaneRow(row[0], row[1], row[2], LaneState(row[3]), *row[4:])


async def ensure(db: Database, upstream: str, model: str) -> int:
    """The lane's id; made where it is new. Safe when several ask at once."""
    found = sa.select(lanes.c.id).where(lanes.c.upstream == upstream, lanes.c.model == model)
    async with db.write() as connection:
        lane_id = (await connection.execute(found)).scalar()
        if lane_id is None:
            fresh = sa.select(
                sa.literal(upstream).label("upstream"),
                sa.literal(model).label("model"),
                sa.literal(LaneState.UNKNOWN.value).label("state"),
            ).where(~found.exists())
            try:
                async with connection.begin_nested():
                    await connection.execute(sa.insert(lanes).from_select(["upstream", "model", "state"], fresh))
            except sa.exc.IntegrityError:
                pass  # another process made it between the look and the insert; it is there, which is all we want
            lane_id = (await connection.execute(found)).scalar_one()
        return int(lane_id)


async def read(db: Database, lane_ids: Iterable[int] | None = None) -> list[LaneRow]:
    """These lanes, or all."""
    statement = sa.select(*_COLUMNS).order_by(lanes.c.id)
    if lane_ids is not None:
        statement = statement.where(db.any_of(lanes.c.id, lane_ids))
    async with db.read() as connection:
        return [_row(row) for row in await connection.execute(statement)]


async def opened(db: Database, *, lane_id: int, now: float) -> None:
    """unknown → open: something succeeded."""
    async with db.write() as connection:
        await connection.execute(
            sa.update(lanes)
            .where(lanes.c.id == lane_id)
            .values(
                state=LaneState.OPEN,
                reason=None,
                halt_status=None,
                proven_at=sa.func.coalesce(lanes.c.proven_at, now),
            )
        )


async def paused(db: Database, *, lane_id: int, until: float) -> None:
    """No calls before `until`, as the upstream asked. It ends by itself; this is for people to see."""
    async with db.write() as connection:
        await connection.execute(sa.update(lanes).where(lanes.c.id == lane_id).values(paused_until=until))


async def halted(db: Database, *, lane_ids: Iterable[int], reason: str, status: int | None = None) -> None:
    """→ halted: no calls until somebody resumes it. `reason` and `status` are the upstream's, where it said so."""
    async with db.write() as connection:
        statement = sa.update(lanes).where(db.any_of(lanes.c.id, lane_ids))
        await connection.execute(statement.values(state=LaneState.HALTED, reason=reason, halt_status=status))


async def resumed(db: Database, *, lane_ids: Iterable[int]) -> None:
    """halted → unknown: it is tried again with a handful of calls."""
    async with db.write() as connection:
        await connection.execute(
            sa.update(lanes)
            .where(db.any_of(lanes.c.id, lane_ids), lanes.c.state == LaneState.HALTED)
            .values(state=LaneState.UNKNOWN, reason=None, halt_status=None)
        )


async def learned(db: Database, *, lane_id: int, completion_tokens: float) -> None:
    """Keep the mean length of an answer, so that the next run reserves well from its first call."""
    async with db.write() as connection:
        statement = sa.update(lanes).where(lanes.c.id == lane_id)
        await connection.execute(statement.values(completion_tokens=completion_tokens))
