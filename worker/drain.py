"""The drain: a coroutine that takes permits, claims that many jobs, and sees that they are run and recorded.

    permits (limits/) → claim (store/claims) → attempt → verdict (probe) → decide (retry) → record (recorder)

What runs next is decided at claim time, lane by lane; nothing is claimed that then has to wait. A drain ends when its
stop event is set (stop claiming, wait a grace period, cancel the rest, give the jobs back), or when it is told to end
with its work. The embedded mode and Celery run this same coroutine.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.hints import Hints, LocalHints
from promptmill.outcome import Failure
from promptmill.settings import Settings
from promptmill.store import workers
from promptmill.store.records import Ending
from worker.attempt import BatchContexts, Desk
from worker.calls import Calls, Counts
from worker.claiming import Claiming
from worker.fires import firing
from worker.herald import Herald
from worker.lane import PAUSED_BY_HAND, Lanes
from worker.limits import Limiter
from worker.recorder import Recorder, is_database_away, words_for
from worker.starting import Starting
from worker.upkeep import Upkeep

log = logging.getLogger("promptmill.worker")

#: Orders (a pause, a cancelled batch, another priority or cap) are noticed after this long, while there is anything
#: that they may be about.
LOOK_SECONDS: Final = 0.5
#: While the database is away it is looked for this often.
AWAY_SECONDS: Final = 0.5
#: Calls that are held are judged without the retries that would come later than this.
HOLD_SECONDS: Final = 60.0
#: While many calls are out, slots that become free within this time are filled by one claim.
LINGER_SECONDS: Final = 0.01
LINGER_FROM_CALLS: Final = 50
#: When as many answers as this part of the calls that may be in flight wait to be written, they are written at once:
#: their places are free only then.
HURRY_PART: Final = 1 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainTerms:
    """What a drain is to work on, and when it ends by itself."""

    worker_name: str
    #: None: all batches of the database.
    only_batches: frozenset[int] | None = None
    #: End when nothing is left that could be done now, or later by waiting.
    until_done: bool = False
    #: End after so long without a call under way or a job to claim; upkeep asks for a new drain when there is work.
    idle_seconds: float | None = None
    #: Past this age, end at the first moment without a call under way. Claiming never stops just to get there: a
    #: thought of an hour would idle the slot.
    max_age_seconds: float | None = None


class Drain:
    """One worker. Make it, `await run(stop)`, once."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        desk: Desk,
        limiter: Limiter,
        terms: DrainTerms,
        *,
        clock: Callable[[], float],
        rng: Callable[[], float] = random.random,
        hints: Hints | None = None,
    ) -> None:
        self.settings = settings
        self.lanes = Lanes(db, clock, desk.config_for)
        self._db = db
        self._limiter = limiter
        self._terms = terms
        self._clock = clock
        self._contexts = BatchContexts(db)
        self._upkeep = Upkeep(db, clock=clock, owner=terms.worker_name)
        self._calls = Calls(
            desk, self._contexts, self.lanes, limiter, record=self._record, changed=self._something_ended, clock=clock,
            rng=rng,
        )  # fmt: skip
        self._claiming = Claiming(db, settings, self._calls, clock=clock)
        self._starting = Starting(
            self._claiming, self._calls, self.lanes, limiter, max_bytes=settings.max_bytes_in_flight,
            started=self._is_busy, hurry=self._hurry, clock=clock,
        )  # fmt: skip
        self._hints = hints or LocalHints()
        self._herald = Herald(self._hints)
        self._wake = asyncio.Event()
        self._looked_at = float("-inf")
        self._worker_id = 0
        self._recorder: Recorder
        self._beat_at = float("-inf")
        self._taken_for_dead = False
        self._lost_touch = False  # with the database: a claim may have succeeded without an answer
        self._abandoned = False
        self._started_at = self._busy_at = clock()

    @property
    def counts(self) -> Counts:
        """What has been done so far."""
        return self._calls.counts

    def halts(self) -> dict[int, Failure]:
        """Lane id → why it is halted."""
        return self.lanes.halted()

    def wake(self) -> None:
        """A hint that there may be new work."""
        self._looked_at = float("-inf")
        self._wake.set()

    def abandon(self) -> None:
        """Do not wait for calls under way any longer: give their jobs back now."""
        self._abandoned = True
        self._calls.cancel()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, or until nothing is left to do where the terms say so."""
        await self._begin()
        waker = asyncio.create_task(self._wake_on(stop))
        heart = asyncio.create_task(self._heartbeat(), name="promptmill-heartbeat")
        try:
            async with self._firing():
                await self._work(stop)
            await self._calls.wait(0 if self._abandoned else self.settings.grace_seconds)
        finally:
            waker.cancel()
            try:
                await self._upkeep.close()
                await self._let_go()
                await self.lanes.close()
                await self._herald.close()
            finally:
                heart.cancel()
            await workers.stopped(self._db, worker_id=self._worker_id, now=self._clock())

    def _firing(self) -> AbstractAsyncContextManager[None]:
        """Schedules fire beside whoever works on whatever comes."""
        if self._terms.only_batches is not None:
            return nullcontext()
        ring, owner = self._hints.work_arrived, self._terms.worker_name
        return firing(self._db, self.settings, owner=owner, ring=ring, clock=self._clock)

    async def _begin(self) -> None:
        now = self._clock()
        self._worker_id = await workers.register(self._db, name=self._terms.worker_name, now=now)
        self._recorder = Recorder(self._db, worker_id=self._worker_id, clock=self._clock, written=self._written)
        self._beat_at = now
        self._taken_for_dead = False

    async def _let_go(self) -> None:
        """Nothing stays in this worker's hands."""
        self._calls.cancel()
        await self._calls.wait(None)
        self._calls.give_back_held()
        await self._recorder.close()
        await self._upkeep.give_back_unknown(self._worker_id, ())

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._recorder.check()
            try:
                await self._see_that_it_is_alive()
                if await self._upkeep.if_due():
                    self._looked_at = float("-inf")
                wait_seconds = await self._round()
                if not self._calls and not self._recorder.backlog and await self._may_end():
                    return
            except (OSError, sa.exc.SQLAlchemyError) as error:
                if not is_database_away(error):
                    raise
                await self._wait_for_database(error, stop)
            else:
                await self._wait(wait_seconds)

    async def _wait_for_database(self, error: Exception, stop: asyncio.Event) -> None:
        """A moment, whatever ends meanwhile: it is no reason to ask sooner, nor to say it again."""
        if not self._lost_touch:
            log.warning("the database is away (%s); nothing is claimed until it is back", words_for(error))
        self._lost_touch = True
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), AWAY_SECONDS)

    async def _wait(self, seconds: float) -> None:
        seconds = min(seconds, self._upkeep.due_in())
        if self._calls:
            seconds = min(seconds, self._looked_at + LOOK_SECONDS - self._clock())
        if seconds > 0 and not self._wake.is_set():
            with suppress(TimeoutError):  # polling is the truth; a wake-up only makes it quicker
                await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()
        if len(self._calls) >= LINGER_FROM_CALLS:
            await asyncio.sleep(LINGER_SECONDS)

    # ---------------------------------------------------------------- claiming

    async def _round(self) -> float:
        """Give every lane its turn to claim; returns for how many seconds asking again is of no use."""
        now = self._clock()
        for lane in self.lanes:
            self.lanes.show_pause(lane)
            await lane.tell(self._limiter, now)
        await self._calls.caps.tell()
        if now - self._looked_at >= LOOK_SECONDS:
            await self._look()
        for lane in self.lanes:
            lane.waiting_for = PAUSED_BY_HAND if lane.row.is_paused else ""
        return await self._starting.everywhere(worker_id=self._worker_id)

    async def _look(self) -> None:
        """See what was ordered, what there is to claim, and what others have learned about the lanes."""
        self._looked_at = self._clock()
        found = await self._claiming.look(self._terms.only_batches)
        await self.lanes.refresh({active.lane_id for active in found})
        await self._contexts.load({active.batch_id for active in found})
        self._claiming.know(found)
        if unheard := self._calls.unheard():
            await self._judge_held(unheard)

    async def _judge_held(self, unheard: set[int]) -> None:
        """What is held waits for others to tell what it means; where no others are to come, it waits no longer."""
        more = self._claiming.lanes | await self._upkeep.lanes_with_more(
            unheard, within_seconds=HOLD_SECONDS, worker_id=self._worker_id
        )
        if quiet := unheard - (more - self.halts().keys()):
            self._calls.resolve_held(lanes=quiet)

    def _hurry(self, places: int | None) -> None:
        """Where answers that wait to be written are what keeps calls from starting, they wait no longer."""
        if places is not None and self._recorder.waiting >= HURRY_PART * places:
            self._recorder.hurry()

    async def _may_end(self) -> bool:
        """Nothing is under way: is this the end?"""
        now, terms = self._clock(), self._terms
        if terms.until_done:
            return await self._all_done()
        if terms.max_age_seconds is not None and now - self._started_at >= terms.max_age_seconds:
            return True
        return terms.idle_seconds is not None and now - self._busy_at >= terms.idle_seconds

    async def _all_done(self) -> bool:
        """Is nothing left that could be claimed, now or later by waiting?"""
        await self._upkeep.finish_what_ended()
        await self._look()
        halted = set(self.halts())
        if self._claiming.lanes - halted or await self._upkeep.more_to_come(
            self._terms.only_batches, halted, worker_id=self._worker_id
        ):
            return False
        if self._calls.holds_any():
            self._calls.resolve_held()
            return False
        return True

    # ---------------------------------------------------------------- what ends, and staying alive

    def _record(self, ending: Ending) -> None:
        self._recorder.put(ending)
        if self._contexts[ending.job.batch_id].is_held:
            self._recorder.hurry()

    def _written(self, endings: Sequence[Ending]) -> None:
        self._calls.written(endings)
        self._herald.finished((each.job.batch_id, each.job.position) for each in endings if each.is_final)
        if self._claiming.waits_for_answers({each.job.batch_id for each in endings}):
            self._looked_at = float("-inf")
            self._upkeep.expect(self._clock())
        for ending in endings:
            if ending.not_before is not None:
                self._upkeep.expect(ending.not_before)  # not sooner: what is not written yet cannot be made ready
            elif not ending.is_final:
                self._looked_at = float("-inf")  # given back: ready again
        self._wake.set()

    def _is_busy(self) -> None:
        self._busy_at = self._clock()

    def _something_ended(self) -> None:
        self._is_busy()
        self._wake.set()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(workers.HEARTBEAT_SECONDS)
            try:
                await self._beat()
            except (OSError, sa.exc.SQLAlchemyError) as error:
                log.warning("the heartbeat could not be written: %s", words_for(error))

    async def _beat(self) -> None:
        now = self._clock()
        waits = {lane.id: lane.waiting_for for lane in self.lanes if lane.waiting_for}
        alive = await workers.heartbeat(
            self._db, worker_id=self._worker_id, in_flight=len(self._calls), waiting_for=waits, now=now
        )
        self._beat_at = now
        self._claiming.workers = max(1, await workers.alive(self._db, now=now))
        if not alive:
            self._taken_for_dead = True
            self._wake.set()

    async def _see_that_it_is_alive(self) -> None:
        """Before anything is claimed, or this worker's own upkeep looks for the dead."""
        if self._clock() - self._beat_at > 2 * workers.HEARTBEAT_SECONDS:
            await self._beat()  # the machine was asleep: that is no time without work, but one without a heartbeat
        if self._taken_for_dead:
            log.error("worker %d was taken for dead and its jobs were given to others; it goes on under a new id",
                      self._worker_id)  # fmt: skip
            await self._let_go()
            await self._begin()
        if self._lost_touch:
            known = self._calls.job_ids() | self._recorder.job_ids()
            given_back = await self._upkeep.give_back_unknown(self._worker_id, known)
            if given_back:
                self._looked_at = float("-inf")
            self._lost_touch = False
            log.info("the database is back")
