"""Jobs that come singly, from hundreds of callers at once: collected for a moment and written in one transaction.

Such jobs live in **inboxes**: batches that stay open, one for each tenant and priority, and that only their server
adds to. A job of an inbox is a job like any other. An inbox is sealed after a while and a new one begun, so that it
can end.
"""

import asyncio
import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.content import pack
from promptmill.engine import Database
from promptmill.errors import LineError
from promptmill.hints import JobKey
from promptmill.intake.checker import Checker
from promptmill.intake.rows import JOB_COLUMNS, Row, job_row
from promptmill.job import BatchState, job_public_id
from promptmill.jsonl import Line
from promptmill.request import Defaults, ParsedLine
from promptmill.settings import Settings
from promptmill.store import files
from promptmill.store.batches import BatchRow, NewBatch, insert_batch, seal_batch
from promptmill.store.rows import batch_in
from promptmill.tables import batch_lanes, batches, file_parts, held_requests, job_notes, jobs

log = logging.getLogger("promptmill.intake")

#: An inbox takes jobs for so long, or so many.
INBOX_SECONDS: Final = 600.0
INBOX_JOBS: Final = 20_000
#: One transaction takes at most so many jobs, and so many bytes.
JOBS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 16 * 1024 * 1024

SOURCE: Final = "inbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request to be made a job. `line` is an envelope with url and body (`request.Form.ENVELOPE`)."""

    tenant_id: int
    line: bytes
    parsed: ParsedLine
    lane_id: int
    priority: int = 0
    not_before: float | None = None
    deadline: float | None = None
    metadata: dict[str, str] | None = None
    #: Somebody waits for it: what recognises the same request when it is sent again.
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that is in the database."""

    key: JobKey
    public_id: str
    #: Of its row among held requests, where somebody waits for it.
    held_id: int | None


@dataclass(slots=True)
class _Open:
    batch: BatchRow
    next_position: int


#: What is to be written with jobs, in the transaction that makes them.
Also = Callable[[AsyncConnection, Sequence[Submitted]], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """Jobs that go in together, and who waits for that."""

    submissions: Sequence[Submission]
    also: Also | None
    future: "asyncio.Future[list[Submitted]]"


class Inbox:
    """One per process. Many may wait in `submit` at once; they are written together."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        ring: Callable[[], Awaitable[None]],
        holder: str,
        clock: Callable[[], float],
    ) -> None:
        """`ring` says that there is work; `holder` names this process among those who wait for answers."""
        self._db = db
        self._settings = settings
        self._ring = ring
        self._holder = holder
        self._clock = clock
        self._open: dict[tuple[int, int], _Open] = {}
        self._waiting: list[_Wanted] = []
        self._writer: asyncio.Task[None] | None = None
        self._checkers: dict[int, Checker] = {}

    async def checked(
        self, tenant_id: int, line: bytes, *, allow_stream: bool = False
    ) -> tuple[ParsedLine, int] | LineError:
        """What the envelope asks for and the lane for it; or what is wrong with it."""
        checker = self._checkers.get(tenant_id)
        if checker is None:
            checker = self._checkers[tenant_id] = Checker(
                self._db, self._settings, Defaults(), file_id=0, tenant_id=tenant_id, created_at=self._clock()
            )
        one = Line(1, line)
        parsed = checker.parsed(one, allow_stream=allow_stream)
        if isinstance(parsed, LineError):
            return parsed
        lane_id = checker.known_lane(parsed) or await checker.lane(one, parsed)
        return lane_id if isinstance(lane_id, LineError) else (parsed, lane_id)

    async def submit(self, submissions: Sequence[Submission], *, also: Also | None = None) -> list[Submitted]:
        """Write these jobs, all or none; returns when they are in the database. Raises what keeps it from taking them.
        `also` is called in the same transaction.

        A caller that is cancelled meanwhile does not take the others' jobs with it: its own may be written or not.
        """
        future: asyncio.Future[list[Submitted]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wanted(submissions, also, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="promptmill-inbox")
        return await future

    async def aclose(self) -> None:
        """Write what waits, and seal the inboxes: nobody else adds to them."""
        if self._writer is not None:
            await self._writer
        try:
            for opened in self._open.values():
                await seal_batch(self._db, batch_id=opened.batch.id, now=self._clock())
        except (OSError, sa.exc.SQLAlchemyError) as error:
            log.warning("inboxes are sealed later, the database is away (%s)", type(error).__name__)
        self._open.clear()

    async def _write_all(self) -> None:
        """The first caller's jobs are written at once; those that come meanwhile go together."""
        try:
            while self._waiting:
                group = self._taken()
                try:
                    made = iter(await self._write(group))
                except Exception as error:  # noqa: BLE001 - every caller is told; here there is nobody to tell
                    self._open.clear()  # what is in memory may not be what was committed
                    for wanted in group:
                        if not wanted.future.done():
                            wanted.future.set_exception(error)
                    continue
                for wanted in group:
                    theirs = list(islice(made, len(wanted.submissions)))
                    if not wanted.future.done():
                        wanted.future.set_result(theirs)
                await self._ring()
        finally:
            self._writer = None

    def _taken(self) -> list[_Wanted]:
        """Whole submissions, as many as one transaction takes, and one at least."""
        jobs_taken, size, count = 0, 0, 0
        for wanted in self._waiting:
            jobs_taken += len(wanted.submissions)
            size += sum(len(one.line) for one in wanted.submissions)
            if count and (jobs_taken > JOBS_AT_ONCE or size > BYTES_AT_ONCE):
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    async def _write(self, units: Sequence[_Wanted]) -> list[Submitted]:
        now = self._clock()
        group = [one for unit in units for one in unit.submissions]
        async with self._db.write() as connection:
            made: dict[int, Submitted] = {}
            held: list[dict[str, object]] = []
            rows = _Rows()
            by_inbox: dict[tuple[int, int], list[int]] = defaultdict(list)
            for index, submission in enumerate(group):
                by_inbox[submission.tenant_id, submission.priority].append(index)
            await self._lock(connection, by_inbox, now)
            inboxes = [
                (await self._inbox(connection, *place, now), place, theirs) for place, theirs in by_inbox.items()
            ]
            for known, place, indexes in sorted(inboxes, key=_lock_order):
                opened, first = await self._taken_in(connection, known, place, len(indexes), now)
                for position, index in enumerate(indexes, first):
                    submission = group[index]
                    rows.add(submission, opened, position, now)
                    key = (opened.batch.id, position)
                    made[index] = Submitted(key, job_public_id(opened.batch.public_id, position), None)
                    if submission.fingerprint is not None:
                        held.append(self._held(submission, key, now))
                on_lanes = Counter(group[index].lane_id for index in indexes)
                sums = [(opened.batch.id, lane_id, count) for lane_id, count in sorted(on_lanes.items())]
                await self._db.add_up(connection, batch_lanes, sums)
            await self._db.insert(connection, file_parts, files.PART_COLUMNS, rows.parts)
            await self._db.insert(connection, jobs, JOB_COLUMNS, rows.jobs)
            if rows.notes:
                await connection.execute(sa.insert(job_notes), rows.notes)
            held_ids = await _hold(connection, held)
            all_made = [dataclasses.replace(one, held_id=held_ids.get(one.key)) for _, one in sorted(made.items())]
            start = 0
            for unit in units:
                end = start + len(unit.submissions)
                if unit.also is not None:
                    await unit.also(connection, all_made[start:end])
                start = end
        return all_made

    def _held(self, submission: Submission, key: JobKey, now: float) -> dict[str, object]:
        return {
            "tenant_id": submission.tenant_id, "fingerprint": submission.fingerprint, "batch_id": key[0],
            "position": key[1], "holder": self._holder, "created_at": now,
        }  # fmt: skip

    async def _lock(self, connection: AsyncConnection, places: Iterable[tuple[int, int]], now: float) -> None:
        """Where inboxes are to be sealed: all of them and those that go on, in the order in which everybody locks."""
        known = [opened for place in places if (opened := self._open.get(place)) is not None]
        if len(known) > 1 and any(_is_over(opened, now) for opened in known):
            ids = [opened.batch.id for opened in known]
            statement = sa.select(batches.c.id).where(self._db.any_of(batches.c.id, ids)).order_by(batches.c.id)
            await connection.execute(statement.with_for_update())

    async def _taken_in(
        self, connection: AsyncConnection, known: _Open, place: tuple[int, int], count: int, now: float
    ) -> tuple[_Open, int]:
        """The inbox that takes so many jobs, and the first of their positions: a new one where somebody ended this one,
        since what is added to that would never run."""
        opened = known
        while (first := await _positions(connection, opened, count)) is None:
            log.warning("%s takes no more jobs: somebody ended it; a new inbox is begun", opened.batch.public_id)
            del self._open[place]
            opened = await self._inbox(connection, *place, now)  # nobody else sees it yet: it is in no ring of locks
        return opened, first

    async def _inbox(self, connection: AsyncConnection, tenant_id: int, priority: int, now: float) -> _Open:
        opened = self._open.get((tenant_id, priority))
        if opened is not None:
            if not _is_over(opened, now):
                return opened
            await seal_batch(self._db, batch_id=opened.batch.id, now=now, connection=connection)
        file_id = await files.insert_file(connection, filename=SOURCE, purpose="_inbox", tenant_id=tenant_id, now=now)
        new = NewBatch(
            file_id=file_id, source=SOURCE, defaults=Defaults().to_json(), priority=priority, tenant_id=tenant_id,
            is_open=True, is_inbox=True, max_attempts=self._settings.max_attempts,
        )  # fmt: skip
        batch = await insert_batch(connection, new, state=BatchState.IN_PROGRESS, now=now)
        opened = self._open[tenant_id, priority] = _Open(batch, 0)
        return opened


def _is_over(opened: _Open, now: float) -> bool:
    return opened.next_position >= INBOX_JOBS or now - opened.batch.created_at >= INBOX_SECONDS


def _lock_order(wanted: tuple[_Open, tuple[int, int], list[int]]) -> int:
    """Everybody locks batches in the order of their ids, so nobody waits for each other in a ring."""
    return wanted[0].batch.id


class _Rows:
    """The rows of one transaction."""

    def __init__(self) -> None:
        self.parts: list[Row] = []
        self.jobs: list[Row] = []
        self.notes: list[dict[str, object]] = []

    def add(self, submission: Submission, opened: _Open, position: int, now: float) -> None:
        batch, parsed = opened.batch, submission.parsed
        self.parts.append(
            (batch.file_id, position, position + 1, parsed.custom_id, parsed.form.value, *pack(submission.line))
        )
        self.jobs.append(
            job_row(
                parsed, batch_id=batch.id, position=position, lane_id=submission.lane_id, file_id=batch.file_id,
                part=position, now=now, not_before=submission.not_before, deadline=submission.deadline,
            )
        )  # fmt: skip
        if submission.fingerprint is None:
            noted = msgspec.json.encode(submission.metadata).decode() if submission.metadata else None
            self.notes.append({"batch_id": batch.id, "position": position, "created_at": now, "metadata": noted})


async def _positions(connection: AsyncConnection, opened: _Open, count: int) -> int | None:
    """Take so many positions; returns the first. The batch's total is what says which are taken. None: it takes no
    jobs any more."""
    statement = (
        sa.update(batches)
        .where(batches.c.id == opened.batch.id, batches.c.is_open, batch_in(BatchState.IN_PROGRESS))
        .values(total=batches.c.total + count)
        .returning(batches.c.total)
    )
    after: int | None = (await connection.execute(statement)).scalar()
    if after is None:
        return None
    opened.next_position = after
    return after - count


async def _hold(connection: AsyncConnection, held: list[dict[str, object]]) -> dict[JobKey, int]:
    if not held:
        return {}
    statement = sa.insert(held_requests).returning(
        held_requests.c.id, held_requests.c.batch_id, held_requests.c.position
    )
    rows = await connection.execute(statement, held)
    return {(batch_id, position): held_id for held_id, batch_id, position in rows}
