"""Orders and fair shares, measured in a process of its own: python -m bench.orders LARGE EACH API, in the environment
of a running cluster. LARGE is how many jobs the large batch has, EACH how many each one of those has that share a lane,
API where the HTTP door is. All have windows, as they do over HTTP. Prints the figures as JSON, one object."""

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from bench.measure import BenchError
from bench.prompts import body
from promptmill.dispatch import Dispatcher
from promptmill.engine import Database
from promptmill.intake import Source, Terms, take_in
from promptmill.priority import BACKGROUND
from promptmill.settings import Settings, load
from promptmill.store import batches, control, pauses
from promptmill.store.batches import BatchRow
from promptmill.store.pauses import What
from promptmill.tables import DEFAULT_TENANT, attempts, tenants

#: The window of the large batch, which needs about a sixth of it; and that of all others.
LARGE_WINDOW_SECONDS: Final = 1_000.0
WINDOW_SECONDS: Final = 86_400.0


async def measure(large: int, each: int, api_url: str) -> dict[str, float]:
    """All of it, one after the other."""
    settings = load(os.environ)
    db = Database(settings.database_url)
    mill = _Mill(db, settings, Dispatcher(settings.redis_url), api_url)
    try:
        return {
            **await mill.small_beside_large(large),
            "weights_percent": await mill.three_tenants(each),
            "background_percent": await mill.background(each),
        }
    finally:
        mill.dispatcher.close()
        await db.aclose()


@dataclass(frozen=True, slots=True)
class _Mill:
    db: Database
    settings: Settings
    dispatcher: Dispatcher
    api_url: str

    async def small_beside_large(self, large: int) -> dict[str, float]:
        """Ten jobs alone, and beside so many of another tenant; then these are paused and cancelled. Seconds."""
        (other,) = await self._tenants("small")
        await self._ten(other)  # the workers are warm and the lane is known
        alone = min([await self._ten(other) for _ in range(5)])
        batch = await self._submit(large, tenant_id=DEFAULT_TENANT, window_seconds=LARGE_WINDOW_SECONDS)
        await self._until(lambda: self._done(batch, 2_000))
        beside = sorted([await self._ten(other) for _ in range(5)])[2]
        await pauses.pause(self.db, What.BATCH, batch.id, now=time.time())
        paused_at = time.time()
        self.dispatcher.work_arrived()
        await asyncio.sleep(2.0)
        (last,) = await self._rows(sa.select(sa.func.max(attempts.c.started_at)).where(attempts.c.batch_id == batch.id))
        await pauses.resume(self.db, What.BATCH, batch.id, now=time.time())
        self.dispatcher.work_arrived()
        await asyncio.sleep(1.0)
        asked = time.monotonic()
        await asyncio.to_thread(self._cancel, batch)
        answered = time.monotonic() - asked
        await self._until(lambda: self._ended(batch))
        seconds, now = time.monotonic() - asked, await batches.get(self.db, batch.id)
        if now.done != now.total:
            raise BenchError(f"of {now.total} jobs {now.done} are counted")
        return {
            "alone_seconds": alone, "beside_seconds": beside, "pause_seconds": max(0.0, last[0] - paused_at),
            "cancel_answered_seconds": answered, "cancel_seconds": seconds,
        }  # fmt: skip

    def _cancel(self, batch: BatchRow) -> None:
        """As its producer does: by the command line's own process it would be the start of Python that is measured."""
        url = f"{self.api_url}/v1/batches/{batch.public_id}/cancel"
        told = {"Content-Type": "application/json"}
        asked = urllib.request.Request(url, data=b'{"abort": true}', headers=told, method="POST")  # noqa: S310
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 - the cluster's own address
            answer.read()

    async def three_tenants(self, each: int) -> float:
        """Weights 1:2:3 on a full lane; by how many percent the worst one's part differs from its weight."""
        made = []
        for number, tenant_id in enumerate(await self._tenants("w1", "w2", "w3")):
            weighs = sa.update(tenants).where(tenants.c.id == tenant_id).values(weight=number + 1.0)
            async with self.db.write() as connection:
                await connection.execute(weighs)
            made.append(await self._submit(each, tenant_id=tenant_id))
        got = await self._starts(made, count=3 * each // 2)
        worst = max(abs(got[batch.id] / got.total() * 6 / (n + 1) - 1) for n, batch in enumerate(made))
        return 100 * worst

    async def background(self, each: int) -> float:
        """A background batch beside a normal one that could use the whole lane: its part, in percent."""
        made = [await self._submit(each), await self._submit(each, priority=BACKGROUND)]
        got = await self._starts(made, count=3 * each // 4)
        return 100 * got[made[1].id] / got.total()

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

    async def _submit(self, count: int, *, window_seconds: float = WINDOW_SECONDS, **terms: Any) -> BatchRow:
        source = Source(name="control.jsonl", chunks=[body() + b"\n"] * count)
        terms["deadline"] = time.time() + window_seconds
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


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))))
