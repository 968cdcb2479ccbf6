"""A lane (upstream x model) as one worker sees it: whether it is good, what limits it, what its calls cost, and why it
waits."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from promptmill.engine import Database
from promptmill.foresight import UNSEEN_ANSWER_TOKENS
from promptmill.job import LaneState
from promptmill.outcome import Answer, Failure, Outcome, Reason
from promptmill.settings import UpstreamConfig
from promptmill.store import lanes as store
from promptmill.store.lanes import LaneRow
from worker.learned_rate import LearnedRate
from worker.limits import Bucket, Limiter, Limits
from worker.probe import Probe, key_probe, model_probe
from worker.retry import PAUSE_BASE_SECONDS, lane_pause_seconds

if TYPE_CHECKING:
    from worker.calls import Call

log = logging.getLogger("promptmill.worker")

#: What others have learned about a lane may be known here so much later.
FRESH_SECONDS: Final = 0.9
#: What keeps a lane from starting calls, beside its limits; for people to see.
PAUSED_BY_HAND: Final = "paused by hand"
HELD_BY_CAPS: Final = "held by caps"
LEARNED_PACE: Final = "learned pace"
#: Weight of the newest answer in the learned mean.
_LEARN: Final = 0.1


@dataclass(slots=True)
class Learned:
    """How many tokens a call of this lane takes; what is reserved before a call starts."""

    answer_tokens: float | None = None  # mean of the answers so far
    call_seconds: float | None = None  # mean time of the answered calls so far
    call_tokens: float = 0.0  # mean of the reservations so far: what a block of permits is taken with

    def reserve(self, prompt_tokens: int, max_tokens: int | None) -> float:
        """Tokens to reserve for a call: never max_tokens = 40,000 for each, never 0."""
        expected = self.answer_tokens if self.answer_tokens is not None else UNSEEN_ANSWER_TOKENS
        tokens = max(1.0, prompt_tokens + (expected if max_tokens is None else min(expected, max_tokens)))
        self.call_tokens = tokens if not self.call_tokens else self.call_tokens + _LEARN * (tokens - self.call_tokens)
        return tokens

    def answered(self, completion_tokens: int, seconds: float) -> None:
        """An answer had this many tokens, and took so long."""
        if self.answer_tokens is None:
            self.answer_tokens = float(completion_tokens)
        else:
            self.answer_tokens += _LEARN * (completion_tokens - self.answer_tokens)
        if self.call_seconds is None:
            self.call_seconds = max(0.0, seconds)
        else:
            self.call_seconds += _LEARN * (max(0.0, seconds) - self.call_seconds)


@dataclass(slots=True)
class Pause:
    """The upstream asked for patience."""

    until: float
    words: str
    told: bool = False  # the limiter knows


@dataclass(slots=True, eq=False)
class Lane:
    """One lane. What the limiter has to be told is gathered here between two rounds of the drain."""

    row: LaneRow
    key: "Probe[Call]"
    model: "Probe[Call]"
    limits: Limits
    shared: bool
    learned: Learned
    in_flight: int = 0
    waits_in_a_row: int = 0
    pause: Pause | None = None
    #: For upstreams whose rate nobody told us.
    pace: LearnedRate = field(default_factory=LearnedRate)
    #: Does this worker know its upstream?
    is_configured: bool = True
    #: What kept the last round from starting more calls, for people to see; "" when nothing did.
    waiting_for: str = ""
    _released: int = 0
    _token_error: float = 0.0  # used beyond what was reserved
    _paused_since: float = 0.0

    @property
    def id(self) -> int:
        """The lane's id."""
        return self.row.id

    @property
    def halted(self) -> Failure | None:
        """Why no calls may start, if so."""
        return self.key.halted or self.model.halted

    @property
    def pause_key(self) -> str:
        """The bucket that a pause belongs to."""
        return f"lane:{self.id}"

    @property
    def own_bucket(self) -> Bucket:
        """What is paused; and what is limited, where the upstream's limits are not shared."""
        return Bucket(self.pause_key, Limits() if self.shared else self.limits)

    @property
    def limit(self) -> Bucket:
        """What limits this lane: itself, or the upstream as a whole where its limits are shared."""
        return Bucket(f"upstream:{self.row.upstream}", self.limits) if self.shared else self.own_bucket

    def buckets(self) -> list[Bucket]:
        """Both, where they are two."""
        return [self.own_bucket, self.limit] if self.shared else [self.own_bucket]

    def room(self, now: float) -> int | None:
        """Calls that may start as far as the probes are concerned; None: any number."""
        rooms = [room for room in (self.key.room(now), self.model.room(now)) if room is not None]
        return min(rooms) if rooms else None

    def opens_in(self, now: float) -> float | None:
        """Seconds until it may open by mere silence."""
        waits = [wait for wait in (self.key.opens_in(now), self.model.opens_in(now)) if wait is not None]
        return max(waits) if waits else None

    def pace_room(self, now: float) -> int | None:
        """Calls that may start at the pace that was learned; None: any number."""
        return self.pace.room(now) if self.limits.requests_per_minute is None else None

    def seconds_per_permit(self, workers: int = 1) -> float | None:
        """How long it takes so many workers together to start one more call; None while that is not known."""
        limits, each = self.limits, self.learned
        paces = []
        if limits.requests_per_minute is not None:
            paces.append(60.0 / limits.requests_per_minute)
        elif self.pace.rate is not None:
            paces.append(1.0 / self.pace.rate / workers)  # each learns its own
        if limits.tokens_per_minute is not None and each.call_tokens:
            paces.append(60.0 * each.call_tokens / limits.tokens_per_minute)
        if limits.max_in_flight is not None and each.call_seconds is not None:
            paces.append(each.call_seconds / limits.max_in_flight)
        return max(paces, default=None)

    def started(self, reserved_tokens: float, granted_tokens: float, now: float) -> None:
        """A call starts. The permit was taken for `granted_tokens`, before it was known which job it is for."""
        self.in_flight += 1
        self.key.started(1, now)
        self.model.started(1, now)
        self.pace.started(1, now)
        self._token_error += reserved_tokens - granted_tokens

    def ended(
        self, outcome: Outcome, *, started_at: float | None, reserved_tokens: float, now: float,
        rng: Callable[[], float],
    ) -> float:  # fmt: skip
        """A call is over; returns how many tokens more (or, negative, less) it took than was reserved. `started_at` is
        None when it was never sent. Its place is not free yet: see `released`."""
        self.in_flight -= 1
        self.key.left()
        self.model.left()
        error = 0.0
        if isinstance(outcome, Answer):
            self.waits_in_a_row = 0
            self.learned.answered(outcome.usage.completion_tokens, now - (started_at or now))
            if outcome.usage.total_tokens:
                error = outcome.usage.total_tokens - reserved_tokens
        elif started_at is None or outcome.reason in _COST_NOTHING:
            error = -reserved_tokens
        self._token_error += error
        if isinstance(outcome, Failure) and outcome.reason in (Reason.RATE_LIMITED, Reason.OVERLOADED):
            self._heed(outcome, started_at or now, now, rng)
        return error

    def released(self) -> None:
        """The place of a call is free: what became of it is in the database, or waits for what others tell.

        Not sooner, because an answer that is not written is sent for again when this process dies. So what is sent
        twice is never more than may be in flight.
        """
        self._released += 1

    def _heed(self, outcome: Failure, started_at: float, now: float, rng: Callable[[], float]) -> None:
        """The upstream asked for patience. Calls that were out together are refused together: that counts once."""
        if outcome.reason is Reason.RATE_LIMITED:
            self.pace.refused(started_at, now)
        if started_at >= self._paused_since:
            self.waits_in_a_row += 1
        elif outcome.retry_after_seconds is None:
            return
        seconds = lane_pause_seconds(outcome, self.waits_in_a_row, rng)
        if self.waits_in_a_row > 1 and seconds < PAUSE_BASE_SECONDS:
            # "Retry-After: 0", and then again: who goes by that alone asks as fast as it can.
            patient = replace(outcome, retry_after_seconds=None)
            seconds = max(seconds, lane_pause_seconds(patient, self.waits_in_a_row, rng))
        until = now + seconds
        if until > max(now, self.pause.until if self.pause else 0.0):
            self._paused_since = now
            self.pause = Pause(until, outcome.message)

    async def tell(self, limiter: Limiter, now: float) -> None:
        """Bring the limiter up to date."""
        if self._released or self._token_error:
            ended, self._released = self._released, 0
            tokens, self._token_error = self._token_error, 0.0
            await limiter.settle(self.buckets(), ended=ended, tokens=tokens)
        if self.pause is not None:
            if not self.pause.told:
                self.pause.told = True
                await limiter.pause(self.pause_key, until=self.pause.until)
            if self.pause.until <= now:
                self.pause = None


#: Refused at the door: no token was spent.
_COST_NOTHING = frozenset(
    {
        Reason.RATE_LIMITED, Reason.OVERLOADED, Reason.UNAUTHORIZED, Reason.PAYMENT_REQUIRED, Reason.FORBIDDEN,
        Reason.NOT_AVAILABLE, Reason.REJECTED, Reason.CONNECTION_REFUSED, Reason.CONNECT_TIMEOUT, Reason.DNS_FAILED,
        Reason.TLS_FAILED, Reason.BAD_REQUEST,
    }
)  # fmt: skip


@dataclass(slots=True)
class Lanes:
    """The lanes that a worker has met, and what it tells the database about them."""

    db: Database
    clock: Callable[[], float]
    config_for: Callable[[str], UpstreamConfig | None]
    _lanes: dict[int, Lane] = field(default_factory=dict)
    _keys: "dict[str, Probe[Call]]" = field(default_factory=dict)
    _chores: set[asyncio.Task[None]] = field(default_factory=set)
    _read_at: float = float("-inf")
    _halts_written: int = 0

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def __getitem__(self, lane_id: int) -> Lane:
        return self._lanes[lane_id]

    async def refresh(self, lane_ids: Iterable[int]) -> None:
        """Learn what the database, and so the other workers, know of these lanes and of those met before. What was
        read a moment ago is believed, unless a lane is new."""
        now = self.clock()
        if now - self._read_at < FRESH_SECONDS and self._lanes.keys() >= set(lane_ids):
            return
        self._read_at = now
        before = self._halts_written
        rows = await store.read(self.db, {*lane_ids, *self._lanes})
        if self._halts_written != before:  # these may be from before the halt, and would look like its end
            rows = await store.read(self.db, {*lane_ids, *self._lanes})
        for row in rows:
            lane = self._lanes.get(row.id)
            if lane is None:
                lane = self._lanes[row.id] = self._met(row)
            if lane.row.state is LaneState.HALTED and row.state is not LaneState.HALTED:
                self._resume(lane)  # somebody said that it is mended
            lane.row = row
            if row.state is LaneState.OPEN:
                lane.model.proven = lane.key.proven = True
            elif row.state is LaneState.HALTED and lane.halted is None:
                lane.model.halted = Failure(Reason.NOT_AVAILABLE, row.reason or "halted", row.halt_status)

    def _resume(self, lane: Lane) -> None:
        """Begin anew with a handful of calls."""
        held = lane.model.held
        lane.model = model_probe(in_flight=lane.in_flight)
        lane.model.held = held
        if lane.key.halted is not None:
            lane.key = self._keys[lane.row.upstream] = key_probe(in_flight=lane.key.in_flight)
            for other in self:
                if other.row.upstream == lane.row.upstream:
                    other.key = lane.key

    def _met(self, row: LaneRow) -> Lane:
        config = self.config_for(row.upstream)
        if config is None:
            # Another worker may have it; this one leaves the lane alone, and says why once.
            words = f"the upstream {row.upstream} is not configured here"
            log.warning("%s: its jobs for %s are left to others", words, row.model)
            lane = Lane(row, key_probe(), model_probe(), Limits(), shared=False, learned=Learned(), is_configured=False)
            lane.model.halted = Failure(Reason.NOT_AVAILABLE, words)
            return lane
        limits = Limits(config.requests_per_minute, config.tokens_per_minute, config.max_in_flight)
        key = self._keys.setdefault(row.upstream, key_probe())
        return Lane(row, key, model_probe(), limits, config.shared_limits, Learned(row.completion_tokens))

    def show_pause(self, lane: Lane) -> None:
        """Calls wait because the upstream asked for it: `status`, `watch` and `doctor` say so."""
        if lane.pause is not None and not lane.pause.told:
            self._chore(store.paused(self.db, lane_id=lane.id, until=lane.pause.until))

    def opened(self, lane: Lane) -> None:
        """Something succeeded: the next run, and every other worker, need not start small."""
        self._chore(store.opened(self.db, lane_id=lane.id, now=self.clock()))

    def halt(self, lane: Lane, failure: Failure, *, whole_upstream: bool) -> None:
        """No further calls, until somebody resumes it."""
        theirs = [lane.id]
        if whole_upstream:
            theirs = [other.id for other in self if other.row.upstream == lane.row.upstream]
        log.info("halted %s at %s: %s", lane.row.model, lane.row.upstream, failure.message)
        self._chore(self._write_halt(theirs, failure))

    async def _write_halt(self, lane_ids: list[int], failure: Failure) -> None:
        await store.halted(self.db, lane_ids=lane_ids, reason=failure.message, status=failure.status)
        # From now on a row that says otherwise means that somebody resumed it, however soon that is.
        self._halts_written += 1
        for lane_id in lane_ids:
            lane = self._lanes[lane_id]
            lane.row = replace(lane.row, state=LaneState.HALTED)

    def halted(self) -> dict[int, Failure]:
        """Lane id → why it is halted."""
        return {lane.id: lane.halted for lane in self if lane.halted is not None}

    async def close(self) -> None:
        """Write what is still to be written."""
        for lane in self:
            if lane.learned.answer_tokens is not None:
                self._chore(store.learned(self.db, lane_id=lane.id, completion_tokens=lane.learned.answer_tokens))
        await asyncio.gather(*self._chores)

    def _chore(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(_if_possible(work))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


async def _if_possible(work: Coroutine[None, None, None]) -> None:
    """What is known about lanes saves time, and no job depends on it: with the database away, it is done without."""
    try:
        await work
    except (OSError, sa.exc.SQLAlchemyError) as error:
        log.warning("what was learned about a lane could not be written: %s", type(error).__name__)
