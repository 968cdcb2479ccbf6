"""What runs next, and how fast orders act: fair shares, a small batch beside a large one, a pause, a cancelled batch;
on the cluster that `promptmill up` starts, with several workers."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bench import servers
from bench.context import Bench
from bench.measure import BenchError
from bench.prompts import body
from bench.report import Figure, Section, Target
from bench.scenarios.cluster import up
from promptmill.contenders import FLOOR
from promptmill.dispatch import Dispatcher
from promptmill.engine import Database
from promptmill.intake import Source, Terms, take_in
from promptmill.priority import BACKGROUND
from promptmill.settings import Settings, load
from promptmill.store import batches, control, pauses
from promptmill.store.batches import BatchRow
from promptmill.store.pauses import What
from promptmill.tables import attempts, tenants

TITLE = "Control: shares of a full lane, and orders"
LATENCY_SECONDS = 0.1
IN_FLIGHT = 64
WORKERS = 3


def scenario(bench: Bench) -> Section:
    """Run it."""
    with (
        servers.waiting(latency=LATENCY_SECONDS) as url,
        up(bench, url, "--workers", str(WORKERS), "--max-in-flight", str(IN_FLIGHT)) as cluster,
    ):
        figures = asyncio.run(_all(bench, cluster.environ))
    return Section(
        TITLE,
        [
            f"promptmill up --workers {WORKERS}, {IN_FLIGHT} calls in flight at most, {LATENCY_SECONDS:g} s each;",
            "when a call started is as its worker noted it down; an order's time begins with its commit",
        ],
        figures=figures,
    )


async def _all(bench: Bench, environ: dict[str, str]) -> list[Figure]:
    settings = load(environ)
    db = Database(settings.database_url)
    mill = _Mill(bench, db, settings, Dispatcher(settings.redis_url))
    try:
        return [*await mill.small_beside_large(), await mill.three_tenants(), await mill.background()]
    finally:
        mill.dispatcher.close()
        await db.aclose()


@dataclass(frozen=True, slots=True)
class _Mill:
    bench: Bench
    db: Database
    settings: Settings
    dispatcher: Dispatcher

    async def small_beside_large(self) -> list[Figure]:
        """Ten jobs alone, and beside 100,000 of another tenant; then these are paused and cancelled."""
        large, (one, other) = self.bench.pick(20_000, 100_000), await self._tenants("large", "small")
        self.bench.tell("ten jobs alone")
        await self._ten(other)  # the workers are warm and the lane is known
        alone = min([await self._ten(other) for _ in range(5)])
        self.bench.tell(f"ten jobs beside {large:,}")
        batch = await self._submit(large, tenant_id=one)
        await self._until(lambda: self._done(batch, 2_000))
        beside = sorted([await self._ten(other) for _ in range(5)])[2]
        self.bench.tell("a pause")
        await pauses.pause(self.db, What.BATCH, batch.id, now=time.time())
        paused_at = time.time()
        self.dispatcher.work_arrived()
        await asyncio.sleep(2.0)
        (last,) = await self._rows(sa.select(sa.func.max(attempts.c.started_at)).where(attempts.c.batch_id == batch.id))
        await pauses.resume(self.db, What.BATCH, batch.id)
        self.dispatcher.work_arrived()
        await asyncio.sleep(1.0)
        self.bench.tell("cancelling it")
        asked = time.monotonic()
        await control.cancel(self.db, batch_id=batch.id, abort=True, now=time.time())
        self.dispatcher.work_arrived()
        await self._until(lambda: self._ended(batch))
        seconds, now = time.monotonic() - asked, await batches.get(self.db, batch.id)
        if now.done != now.total:
            raise BenchError(f"of {now.total} jobs {now.done} are counted")
        return [
            Figure(f"ten jobs beside {large:,} of another tenant", beside / alone, "times alone", Target("≤", 2.0)),
            Figure("the same alone", alone, "s"),
            Figure("last call after a pause", max(0.0, last[0] - paused_at), "s", Target("≤", 1.0)),
            Figure(f"the end of {large:,} jobs that are cancelled", seconds, "s", Target("≤", 10.0)),
        ]

    async def three_tenants(self) -> Figure:
        """Weights 1:2:3 on a full lane; by how much the worst one's part differs from its weight."""
        self.bench.tell("three tenants, 1:2:3")
        each = self.bench.pick(2_000, 4_000)
        made = []
        for number, tenant_id in enumerate(await self._tenants("w1", "w2", "w3")):
            weighs = sa.update(tenants).where(tenants.c.id == tenant_id).values(weight=number + 1.0)
            async with self.db.write() as connection:
                await connection.execute(weighs)
            made.append(await self._submit(each, tenant_id=tenant_id))
        got = await self._starts(made, count=3 * each // 2)
        worst = max(abs(got[batch.id] / got.total() * 6 / (n + 1) - 1) for n, batch in enumerate(made))
        return Figure("tenants of weights 1:2:3: largest difference from it", 100 * worst, "%", Target("≤", 5.0))

    async def background(self) -> Figure:
        """A background batch beside a normal one that could use the whole lane."""
        self.bench.tell("background beside normal")
        each = self.bench.pick(2_000, 4_000)
        made = [await self._submit(each), await self._submit(each, priority=BACKGROUND)]
        got = await self._starts(made, count=3 * each // 4)
        share = 100 * got[made[1].id] / got.total()
        return Figure("background beside normal work that fills the lane", share, "%", Target("≥", 90 * FLOOR))

    # ---------------------------------------------------------------- pieces

    async def _starts(self, made: Sequence[BatchRow], *, count: int) -> Counter[int]:
        """Batch id → so many calls that started while all of these ran; those from before that are left out."""
        await self._until(lambda: self._all_done(made, count + count // 10))
        theirs = sa.select(attempts.c.batch_id).where(self.db.any_of(attempts.c.batch_id, [each.id for each in made]))
        rows = await self._rows(theirs.order_by(attempts.c.started_at).limit(count).offset(count // 10))
        for each in made:
            await control.cancel(self.db, batch_id=each.id, abort=True, now=time.time())
        for each in made:
            await self._until(lambda each=each: self._ended(each))  # type: ignore[misc]  # mypy knows no type for it
        return Counter(batch_id for (batch_id,) in rows)

    async def _ten(self, tenant_id: int) -> float:
        """Seconds from the submission of ten jobs to the commit of the last result."""
        began = time.time()
        batch = await self._submit(10, tenant_id=tenant_id)
        await self._until(lambda: self._ended(batch))
        return ((await batches.get(self.db, batch.id)).finished_at or 0.0) - began

    async def _submit(self, count: int, **terms: Any) -> BatchRow:
        source = Source(name="control.jsonl", chunks=[body() + b"\n"] * count)
        taken = await take_in(self.db, self.settings, source, Terms(**terms), clock=time.time)
        self.dispatcher.work_arrived()
        return taken.batch

    async def _tenants(self, *names: str) -> list[int]:
        made = sa.insert(tenants).returning(tenants.c.id)
        async with self.db.write() as connection:
            return [
                (await connection.execute(made, {"name": name, "created_at": time.time()})).scalar_one()
                for name in names
            ]

    async def _rows(self, statement: "sa.Select[Any]") -> Sequence[Any]:
        async with self.db.read() as connection:
            rows: Sequence[Any] = (await connection.execute(statement)).all()
            return rows

    async def _done(self, batch: BatchRow, count: int) -> bool:
        return (await batches.get(self.db, batch.id)).done >= count

    async def _all_done(self, made: Sequence[BatchRow], count: int) -> bool:
        return sum([(await batches.get(self.db, each.id)).done for each in made]) >= count

    async def _ended(self, batch: BatchRow) -> bool:
        return (await batches.get(self.db, batch.id)).finished_at is not None

    async def _until(self, condition: Callable[[], Awaitable[bool]], seconds: float = 120.0) -> None:
        give_up = time.monotonic() + seconds
        while not await condition():
            if time.monotonic() > give_up:
                raise BenchError(f"not within {seconds:g} s")
            await asyncio.sleep(0.02)
