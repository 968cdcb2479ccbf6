"""Jobs submitted together: made while their input is read, opened when all of it is good, closed when all is done."""

import dataclasses
import math
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.engine import Database
from promptmill.errors import NotFound, NotNow, UsageError
from promptmill.handling import FIELDS as HANDLING_FIELDS
from promptmill.handling import AfterCanary, Handling
from promptmill.job import BATCH_ACTIVE, BatchState, State
from promptmill.store import admissions
from promptmill.store.admissions import COMMAND, HELD_SECONDS
from promptmill.store.pauses import What, forget_in
from promptmill.store.records import close_if_done
from promptmill.store.rows import batch_in, in_state, is_public_id, new_public_id
from promptmill.tables import DEFAULT_TENANT, attempts, batch_lanes, batches, file_parts, files, jobs, lanes, results

#: Inboxes are sealed by their process much sooner.
ABANDONED_INBOX_SECONDS: Final = 7_200.0
_PREFIX: Final = "batch_"
#: The year 9999: no calendar has a word for what is later.
LATEST: Final = 253_402_300_799.0


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as the database has it; the counts are of finished jobs."""

    id: int
    public_id: str
    tenant_id: int
    file_id: int
    state: BatchState
    is_open: bool
    is_inbox: bool
    source: str
    defaults: str
    priority: int
    deadline: float | None
    max_attempts: int
    created_at: float
    in_progress_at: float | None
    cancelling_at: float | None
    finished_at: float | None
    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    invalid: int
    retried: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    dialect: str | None
    endpoint: str | None
    completion_window: str | None
    metadata: str | None
    output_expires_seconds: int | None
    errors: str | None
    results_after: int
    weight: float
    max_in_flight: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    budget_tokens: int | None
    budget_cost: float | None
    canary: int | None
    canary_percent: float
    canary_then: AfterCanary
    canary_until: int | None  # the last position of the canary, while it is not decided
    not_before: float | None
    aborts_calls: bool
    validator: str | None  # who reads its lines in, and until when that is believed
    validator_until: float | None

    def is_left(self, now: float) -> bool:
        """Was it read in by a command that is gone? Then nobody goes on with it."""
        if self.state is not BatchState.VALIDATING:
            return False
        if self.validator is not None and self.validator.startswith(COMMAND):
            return (self.validator_until or 0.0) <= now
        # Commands of versions before held nothing.
        is_commands = self.dialect is None and self.validator_until is None
        return is_commands and self.created_at <= now - HELD_SECONDS

    @property
    def handling(self) -> Handling:
        """How it is handled beside others."""
        return Handling(**{name: getattr(self, name) for name in HANDLING_FIELDS})

    @property
    def done(self) -> int:
        """Jobs that have their result."""
        return self.succeeded + self.failed + self.cancelled + self.expired + self.invalid


_COLUMNS = tuple(batches.c[name] for name in BatchRow.__dataclass_fields__)


def _row(row: Any) -> BatchRow:
    fields = row._asdict()
    states = {"state": BatchState(fields["state"]), "canary_then": AfterCanary(fields["canary_then"])}
    return BatchRow(**{**fields, **states})


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a batch starts with."""

    file_id: int
    source: str  # where its input came from, for people: a file name
    defaults: str  # jsonl.Defaults as JSON
    run_key: str | None = None
    priority: int = 0
    deadline: float | None = None
    max_attempts: int = 6
    tenant_id: int = DEFAULT_TENANT
    is_open: bool = False
    is_inbox: bool = False
    dialect: str | None = None  # of its producer: "openai" or "together"; None is the command line's
    endpoint: str | None = None
    completion_window: str | None = None
    metadata: str | None = None  # JSON
    output_expires_seconds: int | None = None
    handling: Handling = field(default_factory=Handling)
    #: Who reads its lines in, and until when that is believed; None: whoever takes it over.
    validator: str | None = None
    validator_until: float | None = None


def refuse_left(batch: BatchRow, now: float) -> None:
    """Raise NotNow for a batch that nobody reads in any more."""
    if batch.is_left(now):
        raise NotNow(
            f"nothing was heard lately from the command that reads the lines of {batch.public_id}; if it is gone, "
            f"remove the batch, of which nothing was sent: promptmill cancel {batch.public_id}"
        )


def check_deadline(deadline: float | None) -> None:
    """Raise UsageError for what is no moment that anybody could write."""
    if deadline is not None and not (math.isfinite(deadline) and 0 <= deadline <= LATEST):
        raise UsageError("deadline must be a moment up to the year 9999")


async def create(db: Database, new: NewBatch, *, now: float) -> BatchRow:
    """→ validating: its jobs can be added, and none can be claimed."""
    async with db.write() as connection:
        return await insert_batch(connection, new, state=BatchState.VALIDATING, now=now)


async def insert_batch(connection: AsyncConnection, new: NewBatch, *, state: BatchState, now: float) -> BatchRow:
    """A new batch, in the caller's transaction. Raises UsageError for a deadline that is none."""
    check_deadline(new.deadline)
    given = dataclasses.asdict(new)
    statement = sa.insert(batches).values(
        **given.pop("handling"),
        **given,
        public_id=new_public_id(_PREFIX),
        state=state,
        created_at=now,
        in_progress_at=now if state is BatchState.IN_PROGRESS else None,
        results_after=sa.select(sa.func.coalesce(sa.func.max(results.c.id), 0)).scalar_subquery(),
    )
    return _row((await connection.execute(statement.returning(*_COLUMNS))).one())


async def seal_batch(db: Database, *, batch_id: int, now: float, connection: AsyncConnection | None = None) -> None:
    """No more jobs are added; it is complete when those that it has are."""
    if connection is None:
        async with db.write() as own:
            await seal_batch(db, batch_id=batch_id, now=now, connection=own)
        return
    await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(is_open=False))
    await close_if_done(connection, batch_id, now)


async def open_(
    db: Database, *, batch_id: int, jobs_by_lane: Mapping[int, int], invalid: int, holder: str | None = None, now: float
) -> None:
    """validating → in_progress: everything was read and is good; claims may begin. Empty ones are complete at once.
    Raises admissions.Lost where it is not the holder's any more."""
    async with db.write() as connection:
        if holder is not None:
            await admissions.hold(connection, batch_id=batch_id, holder=holder, now=now)
        await open_batch(connection, batch_id=batch_id, jobs_by_lane=jobs_by_lane, invalid=invalid, now=now)


async def open_batch(
    connection: AsyncConnection, *, batch_id: int, jobs_by_lane: Mapping[int, int], invalid: int, now: float
) -> None:
    """The same, in the caller's transaction."""
    if jobs_by_lane:
        await connection.execute(
            sa.insert(batch_lanes),
            [{"batch_id": batch_id, "lane_id": lane, "total": n} for lane, n in sorted(jobs_by_lane.items())],
        )
    await connection.execute(
        sa.update(batches)
        .where(batches.c.id == batch_id, batch_in(BatchState.VALIDATING))
        .values(
            state=BatchState.IN_PROGRESS,
            in_progress_at=now,
            total=sum(jobs_by_lane.values()) + invalid,
            invalid=invalid,
            canary_until=await canary_until(connection, batch_id),
        )
    )
    await close_if_done(connection, batch_id, now)


async def canary_until(connection: AsyncConnection, batch_id: int) -> int | None:
    """The position of the canary's last job: claims go in the order of positions, so the canary is what comes first.
    None where there is no canary, or it would be the whole batch; of one that is open, more may come."""
    asked = sa.select(batches.c.canary, batches.c.is_open).where(batches.c.id == batch_id)
    canary, is_open = (await connection.execute(asked)).one()
    if canary is None:
        return None
    in_order = sa.select(jobs.c.position).where(jobs.c.batch_id == batch_id).order_by(jobs.c.position)
    last_two: list[int] = list((await connection.execute(in_order.limit(2).offset(canary - 1))).scalars())
    if len(last_two) > 1:
        return last_two[0]
    last: int | None = (
        await connection.execute(sa.select(sa.func.max(jobs.c.position)).where(jobs.c.batch_id == batch_id))
    ).scalar()
    return last if is_open else None


async def seal_abandoned(db: Database, *, now: float) -> int:
    """Seal inboxes that no process adds to any more: it died, or lost touch with the database. Returns how many."""
    old = sa.select(batches.c.id).where(
        batches.c.finished_at.is_(None), batches.c.is_inbox, batches.c.is_open,
        batches.c.created_at < now - ABANDONED_INBOX_SECONDS,
    )  # fmt: skip
    async with db.read() as connection:
        batch_ids = list((await connection.execute(old.order_by(batches.c.id))).scalars())
    for batch_id in batch_ids:
        await seal_batch(db, batch_id=batch_id, now=now)
    return len(batch_ids)


async def discard(db: Database, *, batch_id: int) -> None:
    """Remove a batch with all that hangs on it: its input was wrong, or its intake died half way."""
    async with db.write() as connection:
        file_id = (await connection.execute(sa.select(batches.c.file_id).where(batches.c.id == batch_id))).scalar()
        for table in (jobs, results, attempts, batch_lanes):
            await connection.execute(sa.delete(table).where(table.c.batch_id == batch_id))
        await connection.execute(sa.delete(batches).where(batches.c.id == batch_id))
        await forget_in(connection, What.BATCH, batch_id)
        if file_id is not None:
            shared = sa.select(batches.c.id).where(batches.c.file_id == file_id).limit(1)
            if (await connection.execute(shared)).scalar() is None:
                await connection.execute(sa.delete(file_parts).where(file_parts.c.file_id == file_id))
                await connection.execute(sa.delete(files).where(files.c.id == file_id))


async def discard_left(db: Database, batch: BatchRow, *, now: float) -> bool:
    """Remove a batch that was read in by a command that is gone; False where it is not such a one."""
    if not batch.is_left(now):
        return False
    # Held first: should the command only have stood still, it finds that it has lost the batch, and writes no more.
    holder = f"{COMMAND}{secrets.token_hex(8)}"
    if not await admissions.take(db, batch_id=batch.id, holder=holder, now=now):
        return False
    await discard(db, batch_id=batch.id)
    return True


async def forget_run(db: Database, *, batch_id: int) -> None:
    """A later `run` of the same input starts a batch of its own (`--fresh`); this one stays as it is."""
    async with db.write() as connection:
        await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(run_key=None))


async def get(db: Database, batch_id: int) -> BatchRow:
    """One batch. Raises NotFound."""
    async with db.read() as connection:
        row = (await connection.execute(sa.select(*_COLUMNS).where(batches.c.id == batch_id))).one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id}")
    return _row(row)


async def locked(connection: AsyncConnection, batch_id: int) -> BatchRow:
    """One batch, as nobody else changes it until the transaction has ended. Raises NotFound."""
    statement = sa.select(*_COLUMNS).where(batches.c.id == batch_id).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id}")
    return _row(row)


async def find(db: Database, reference: str | None, *, only_looks: bool = False) -> BatchRow:
    """The batch with this public id (a unique beginning will do), or the newest one. Raises NotFound, also for a
    beginning that all ids have, but for who `only_looks`: rather than a wish it is a variable that is not set."""
    newest = sa.select(*_COLUMNS).order_by(batches.c.id.desc()).limit(2)
    if reference is not None:
        if not reference or (reference == _PREFIX and not only_looks):
            raise NotFound(f"{reference!r} names no batch; give its id, or how that begins")
        newest = newest.where(batches.c.public_id.startswith(reference, autoescape=True))
    async with db.read() as connection:
        rows = (await connection.execute(newest)).all()
    if not rows:
        raise NotFound(f"no batch {reference!r} in this database" if reference else "this database has no batch yet")
    if reference is not None and len(rows) > 1 and rows[0].public_id != reference:
        raise NotFound(f"{reference!r} begins the id of more than one batch; give more of it")
    return _row(rows[0])


async def by_public_id(db: Database, public_id: str, *, tenant_id: int | None) -> BatchRow | None:
    """The batch of this tenant, or of any where that is None, with this public id."""
    if not is_public_id(public_id):
        return None
    statement = sa.select(*_COLUMNS).where(batches.c.public_id == public_id)
    if tenant_id is not None:
        statement = statement.where(batches.c.tenant_id == tenant_id)
    async with db.read() as connection:
        row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _row(row)


async def with_jobs_at(db: Database, batch_id: int, positions: Sequence[int]) -> set[int]:
    """Those of these positions at which the batch has a job, finished or not: an empty line of its file had none."""
    found: set[int] = set()
    async with db.read() as connection:
        for table in (results, jobs):
            statement = sa.select(table.c.position).where(table.c.batch_id == batch_id)
            rows = await connection.execute(statement.where(db.any_of(table.c.position, positions)))
            found.update(rows.scalars())
    return found


async def by_run_key(db: Database, run_key: str) -> BatchRow | None:
    """The batch that an earlier `run` of the same input made."""
    async with db.read() as connection:
        row = (await connection.execute(sa.select(*_COLUMNS).where(batches.c.run_key == run_key))).one_or_none()
    return None if row is None else _row(row)


async def listed(
    db: Database, *, limit: int = 50, tenant_id: int | None = None, below: int | None = None
) -> list[BatchRow]:
    """The newest batches; with `tenant_id`, those that this tenant submitted as such; those made before `below`."""
    statement = sa.select(*_COLUMNS).order_by(batches.c.id.desc()).limit(limit)
    if tenant_id is not None:
        statement = statement.where(batches.c.tenant_id == tenant_id, batches.c.is_inbox.is_(sa.false()))
    if below is not None:
        statement = statement.where(batches.c.id < below)
    async with db.read() as connection:
        return [_row(row) for row in await connection.execute(statement)]


async def unfinished_lanes(db: Database, batch_id: int) -> dict[int, int]:
    """Lane id → jobs of the batch that are not finished on it."""
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(jobs.c.lane_id, sa.func.count()).where(jobs.c.batch_id == batch_id).group_by(jobs.c.lane_id)
        )
        return {lane_id: int(count) for lane_id, count in rows}


async def counts_by_state(db: Database, batch_ids: Sequence[int]) -> dict[int, dict[State, int]]:
    """Batch id → state → jobs not finished. Reads the hot rows of these batches."""
    counts: dict[int, dict[State, int]] = defaultdict(dict)
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(jobs.c.batch_id, jobs.c.state, sa.func.count())
            .where(db.any_of(jobs.c.batch_id, batch_ids))
            .group_by(jobs.c.batch_id, jobs.c.state)
        )
        for batch_id, state, count in rows:
            counts[batch_id][State(state)] = count
    return counts


async def next_due(db: Database, batch_id: int) -> float | None:
    """When the first waiting job of the batch is due."""
    async with db.read() as connection:
        statement = sa.select(sa.func.min(jobs.c.not_before)).where(jobs.c.batch_id == batch_id)
        due: float | None = (await connection.execute(statement.where(in_state(State.WAITING)))).scalar()
        return due


async def lane_names(db: Database, batch_id: int) -> dict[int, tuple[str, str]]:
    """Lane id → (upstream, model) for the lanes that the batch uses."""
    async with db.read() as connection:
        rows = await connection.execute(
            sa.select(lanes.c.id, lanes.c.upstream, lanes.c.model)
            .join(batch_lanes, batch_lanes.c.lane_id == lanes.c.id)
            .where(batch_lanes.c.batch_id == batch_id)
        )
        return {lane_id: (upstream, model) for lane_id, upstream, model in rows}


async def running(db: Database, batch_id: int) -> bool:
    """Is the batch still to be worked on?"""
    return (await get(db, batch_id)).state in BATCH_ACTIVE


async def name_run(db: Database, *, batch_id: int, run_key: str) -> None:
    """Let a later `run` of the same input find this batch."""
    async with db.write() as connection:
        await connection.execute(sa.update(batches).where(batches.c.id == batch_id).values(run_key=run_key))
