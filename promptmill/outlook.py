"""What is to be expected of a batch now: what the database has, and what is configured, handed to `foresight`.

A few statements for however many batches, none of which counts jobs; so it can be asked for at every look at a batch.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Final

from promptmill import pace
from promptmill.engine import Database
from promptmill.fairness import Contender, Tenant
from promptmill.foresight import (
    UNSEEN_ANSWER_TOKENS,
    Expected,
    Foresight,
    LaneWork,
    ceiling,
    expected,
    seconds_per_job,
    time_left,
)
from promptmill.handling import Handling
from promptmill.job import BATCH_FINISHED, BatchState, LaneState
from promptmill.limits import Limits
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import lanes, outlook, sums, workers
from promptmill.store.batches import BatchRow
from promptmill.store.outlook import Learned, Queued, TenantTerms
from promptmill.store.sums import Progress
from promptmill.store.workers import AtWork
from promptmill.turns import UNKNOWN, Standing, Tempo, played, standing

#: How far back it is looked for a lane's pace.
LOOK_BACK_SECONDS: Final = 3_600.0
#: A batch's own answers tell better than the lane's how long they are, once there are so many.
_ENOUGH_ANSWERS: Final = 10
#: What was counted and what was estimated of a batch are the same when they differ by no more than this part.
_ALIKE: Final = 0.01
_UNTOLD_MAX_IN_FLIGHT: Final = next(each.default for each in fields(UpstreamConfig) if each.name == "max_in_flight")


class Wait(StrEnum):
    """Why a batch does not go on now, or why it cannot be told how long it takes."""

    READING = "reading"  # its lines are being checked
    NOT_BEFORE = "not_before"  # its time has not come: it is counted from there
    PAUSED = "paused"
    OPEN = "open"  # all is done that it has; it ends when it is sealed
    HALTED = "halted"  # a lane is, by what its upstream said
    CANCELLING = "cancelling"
    NO_WORKER = "no_worker"
    NOT_SERVED = "not_served"  # no worker knows the upstream of one of its lanes
    NO_ANSWERS = "no_answers"  # for a long time nothing has ended on one of its lanes
    UNKNOWN = "unknown"  # no answer yet, and no limit to go by


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to be expected of a batch, as of `at`."""

    at: float
    #: Were nothing in its way from now on.
    work: Foresight
    reason: Wait | None = None
    deadline: float | None = None

    @property
    def foresight(self) -> Foresight:
        """What is to be expected as things are: nothing, while something is in its way."""
        return self.work if self.reason in (None, Wait.NOT_BEFORE) else Foresight(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A batch that is not made yet, or does not go on yet."""

    batch_id: int = 0
    #: Model → its jobs, and the tokens that one of them takes, prompt and answer.
    work: Mapping[str, tuple[int, float]]
    tenant_id: int
    priority: int = 0
    deadline: float | None = None
    handling: Handling = field(default_factory=Handling)


@dataclass(frozen=True, slots=True)
class PlannedLane:
    """What is to be expected of such a batch on one lane; `expected` is None while nothing is known."""

    standing: Standing
    expected: Expected | None
    call_seconds: float | None  # None: no call was answered yet, so it is not in what is expected


async def of_batches(
    db: Database,
    settings: Settings,
    rows: Sequence[BatchRow],
    *,
    now: float,
    left: Mapping[int, Mapping[int, int]] | None = None,
) -> dict[int, Outlook]:
    """Batch id → its outlook, for those of these that have not finished. `left`: batch id → lane id → unfinished jobs,
    where somebody has counted them."""
    found: dict[int, Outlook] = {}
    running = [row for row in rows if row.state is BatchState.IN_PROGRESS]
    for row in rows:
        if row.state not in BATCH_FINISHED and row not in running:
            why = Wait.READING if row.state is BatchState.VALIDATING else Wait.CANCELLING
            found[row.id] = Outlook(now, Foresight(None), why, row.deadline)
    if not running:
        return found
    lanes_of = await outlook.lanes_of(db, [row.id for row in running])
    view = await _view(db, settings, {lane for each in lanes_of.values() for lane in each}, running, now)
    for row in running:
        counted = (left or {}).get(row.id)
        own = counted if counted is not None else _estimated(row, lanes_of.get(row.id, {}))
        tokens_each = await _tokens_each(db, view, row, own)
        works = view.works(_Own.of(row, own), own, dict.fromkeys(own, tokens_each))
        reason = view.reason(row, own)
        foresight = time_left(list(works.values()), deadline=row.deadline, now=now)
        if foresight.seconds is None and reason in (None, Wait.NOT_BEFORE):
            reason = Wait.UNKNOWN
        found[row.id] = Outlook(now, foresight, reason, row.deadline)
        await asyncio.sleep(0)  # each may take some milliseconds, and the event loop is everybody's
    return found


async def of_planned(
    db: Database, settings: Settings, planned: Planned, *, now: float
) -> tuple[Foresight, dict[str, PlannedLane]]:
    """What is to be expected of a batch if it were made now, and of its lane of each model."""
    names = {}
    for model in planned.work:
        if (upstream := settings.upstream_for(model)) is not None:
            names[upstream.name, model] = model
    known = {names[row.upstream, row.model]: row for row in await lanes.read(db) if (row.upstream, row.model) in names}
    view = await _view(db, settings, [row.id for row in known.values()], [], now, tenant_ids=[planned.tenant_id])
    # A lane that nothing was ever sent to has a number of its own, which no lane of the database has.
    numbers = {model: known[model].id if model in known else -place for place, model in enumerate(planned.work, 1)}
    for upstream_name, model in names:
        if model not in known:
            view.lanes[numbers[model]] = _Lane(upstream_name)
    handling = planned.handling
    own = _Own(
        planned.batch_id, planned.tenant_id, planned.priority, handling.weight, _caps(handling), handling.not_before,
        planned.deadline,
    )  # fmt: skip
    left = {numbers[model]: jobs for model, (jobs, _) in planned.work.items()}
    tokens = {numbers[model]: each for model, (_, each) in planned.work.items()}
    works = view.works(own, left, tokens)
    each = {
        model: PlannedLane(
            view.standing(own, number, works[number]), expected(works[number]), works[number].call_seconds
        )
        for model, number in numbers.items()
    }  # fmt: skip
    return time_left(list(works.values()), deadline=planned.deadline, now=now), each


def _estimated(row: BatchRow, totals: Mapping[int, int]) -> dict[int, int]:
    """Lane id → unfinished jobs, where nobody counted: what is left is taken to be spread as all of it was."""
    left, all_ = row.total - row.done, sum(totals.values())
    return {lane_id: -(-left * total // all_) for lane_id, total in totals.items()} if all_ else {}


async def _tokens_each(db: Database, view: "_View", row: BatchRow, left: Mapping[int, int]) -> float | None:
    """What a call of the batch takes, where tokens are limited; else nobody asks."""
    if not view.counts_tokens(_Own.of(row, left), left):
        return None
    if row.succeeded >= _ENOUGH_ANSWERS:
        return (row.prompt_tokens + row.completion_tokens) / row.succeeded
    prompt = await outlook.prompt_tokens_each(db, row.id) or 1.0
    answers = [view.lanes[lane_id].completion_tokens for lane_id in left]
    known = [tokens for tokens in answers if tokens is not None]
    return prompt + (sum(known) / len(known) if known else UNSEEN_ANSWER_TOKENS)


def _caps(terms: BatchRow | Handling) -> Limits:
    return Limits(terms.requests_per_minute, terms.tokens_per_minute, terms.max_in_flight)


@dataclass(frozen=True, slots=True)
class _Own:
    """The batch that is asked about."""

    batch_id: int  # 0: it is not made yet
    tenant_id: int
    priority: int
    weight: float
    caps: Limits
    not_before: float | None
    deadline: float | None
    done: int = 0  # where all of it is on one lane

    @classmethod
    def of(cls, row: BatchRow, left: Mapping[int, int]) -> "_Own":
        done = row.succeeded + row.failed if len(left) == 1 else 0
        return cls(row.id, row.tenant_id, row.priority, row.weight, _caps(row), row.not_before, row.deadline, done)


@dataclass(frozen=True, slots=True)
class _Lane:
    """What foresight has to know of a lane; nothing more, where it is not made yet."""

    upstream: str
    state: LaneState = LaneState.UNKNOWN
    paused_until: float = 0.0
    completion_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class _View:
    """Some lanes, and all that goes on on them."""

    now: float
    lanes: dict[int, _Lane]
    upstreams: dict[str, UpstreamConfig]
    queue: dict[int, list[Queued]]
    progress: dict[int, list[Progress]]
    learned: dict[int, Learned]
    tenants: dict[int, TenantTerms]
    at_work: AtWork
    #: Lane id → what was played of it.
    plays: dict[int, dict[int, float]] = field(default_factory=dict)

    def works(self, own: _Own, left: Mapping[int, int], tokens_each: Mapping[int, float | None]) -> dict[int, LaneWork]:
        """Lane id → the batch's work there; `left` are its unfinished jobs, by lane."""
        all_left = sum(left.values())
        by_upstream: dict[str, int] = defaultdict(int)
        for lane_id, jobs in left.items():
            by_upstream[self.lanes[lane_id].upstream] += jobs
        made = {}
        for lane_id, jobs in left.items():
            lane = self.lanes[lane_id]
            config = self.upstreams.get(lane.upstream)
            paced = self._pace(own, lane_id)
            calls = self.learned.get(lane_id)
            made[lane_id] = LaneWork(
                left=jobs,
                finished=paced.finished,
                bucket_seconds=paced.bucket_seconds,
                is_rough=paced.is_rough,
                limits=_limits(config) if config is not None and _is_limited(config) else Limits(),
                beside_it=by_upstream[lane.upstream] - jobs if config is not None and config.shared_limits else 0,
                caps=self._caps(own),
                elsewhere=all_left - jobs,
                tokens_each=tokens_each[lane_id],
                call_seconds=paced.call_seconds if paced.call_seconds is not None or calls is None
                else calls.seconds_each,
                idle_seconds=max(0.0, lane.paused_until - self.now, (own.not_before or 0.0) - self.now),
            )  # fmt: skip
            made[lane_id] = replace(made[lane_id], jobs_until_done=self._until_done(own, lane_id, made[lane_id]))
        return made

    def standing(self, own: _Own, lane_id: int, work: LaneWork) -> Standing:
        """Where the batch stands on the lane."""
        all_ = self._contenders(own, lane_id, work.left)
        return standing(all_[-1], all_, self._weights(), self._tempo(work, all_))

    def reason(self, row: BatchRow, left: Mapping[int, int]) -> Wait | None:
        """What is in its way."""
        open_lanes = [lane_id for lane_id, jobs in left.items() if jobs]
        if row.is_open and not open_lanes:
            return Wait.OPEN
        if any(each.is_paused for lane_id in open_lanes for each in self.queue[lane_id] if each.batch_id == row.id):
            return Wait.PAUSED
        if any(self.lanes[lane_id].state is LaneState.HALTED for lane_id in open_lanes):
            return Wait.HALTED
        if self.at_work.since is None:
            return Wait.NO_WORKER
        if not self.at_work.not_served.isdisjoint(open_lanes):
            return Wait.NOT_SERVED
        if row.not_before is not None and row.not_before > self.now:
            return Wait.NOT_BEFORE
        waits = [lane_id for lane_id in open_lanes if self.lanes[lane_id].paused_until <= self.now]
        if any(self._pace(_Own.of(row, left), lane_id).is_silent for lane_id in waits):
            return Wait.NO_ANSWERS
        return None

    def counts_tokens(self, own: _Own, left: Iterable[int]) -> bool:
        """Does anything limit tokens?"""
        limits = self._caps(own)
        limits += [_limits(self.upstreams.get(self.lanes[lane_id].upstream)) for lane_id in left]
        return any(each.tokens_per_minute is not None for each in limits)

    def _caps(self, own: _Own) -> list[Limits]:
        tenant = self.tenants.get(own.tenant_id)
        return [own.caps] if tenant is None else [own.caps, tenant.limits]

    def _until_done(self, own: _Own, lane_id: int, work: LaneWork) -> float | None:
        """Jobs that the lane does until the last of its own."""
        queued = [each for each in self._rivals(lane_id) if each.batch_id == own.batch_id]
        if len(self._rivals(lane_id)) == len(queued):
            return None
        all_ = self._contenders(own, lane_id, work.left)
        if own.batch_id and not queued:  # a list may have a hundred that wait: each would be a play of its own
            return standing(all_[-1], all_, self._weights(), self._tempo(work, all_)).jobs_until_done(work.left)
        if not queued or abs(queued[0].left - work.left) > max(1.0, _ALIKE * work.left):
            return played(all_, self._weights(), self._tempo(work, all_))[own.batch_id]
        if lane_id not in self.plays:  # one play tells of all that are at work on the lane
            self.plays[lane_id] = played(all_, self._weights(), self._tempo(work, all_))
        return self.plays[lane_id][own.batch_id]

    def _contenders(self, own: _Own, lane_id: int, left: int) -> list[Contender]:
        """Those that are worked on now, and the batch, which is the last one."""
        all_ = [
            Contender(
                each.batch_id, each.priority, tenant_id=each.tenant_id, weight=each.weight, deadline=each.deadline,
                ready=each.left,
            )
            for each in self._rivals(lane_id)
            if each.batch_id != own.batch_id
        ]  # fmt: skip
        mine = Contender(
            own.batch_id, own.priority, tenant_id=own.tenant_id, weight=own.weight, deadline=own.deadline, ready=left
        )
        return [*all_, mine]

    def _weights(self) -> dict[int, Tenant]:
        return {id_: Tenant(weight=terms.weight) for id_, terms in self.tenants.items()}

    def _tempo(self, work: LaneWork, all_: Sequence[Contender]) -> Tempo:
        """How fast the lane is, and how fast workers take it to be: they go by its limits."""
        jobs = sum(each.ready or 0 for each in all_)
        each = seconds_per_job(work, jobs) if jobs else None
        if each is None:
            return UNKNOWN
        most = ceiling(work.limits, tokens_each=work.tokens_each, call_seconds=work.call_seconds)
        return Tempo(
            now=self.now + work.idle_seconds, seconds_per_job=each,
            seconds_per_permit=None if most is None else 1 / most[0], call_seconds=work.call_seconds or 0.0,
        )  # fmt: skip

    def _rivals(self, lane_id: int) -> list[Queued]:
        """Those that are worked on now."""
        return [each for each in self.queue[lane_id] if not each.is_paused and each.since <= self.now]

    def _pace(self, own: _Own, lane_id: int) -> pace.Pace:
        # What has a cap, and what comes singly, does not press the lane: its pace would be theirs. The batch itself
        # does, paused or not: what was seen before tells how it will go on.
        mine = [each for each in self.queue[lane_id] if each.batch_id == own.batch_id and each.since <= self.now]
        pressing = mine + [
            each for each in self._rivals(lane_id)
            if each.batch_id != own.batch_id and not (each.is_inbox or each.is_capped)
        ]  # fmt: skip
        return pace.seen(
            self.progress[lane_id],
            bucket_seconds=sums.BUCKET_SECONDS,
            busy_since=min((each.since for each in pressing), default=None),
            working_since=self.at_work.since or 0.0,
            done=own.done,
            pause=max((_pause(pressing, self.now), self._away(lane_id)), key=lambda each: each[1] if each else 0.0),
            limits=_limits(self.upstreams.get(self.lanes[lane_id].upstream)),
            now=self.now,
        )

    def _away(self, lane_id: int) -> tuple[float, float] | None:
        """From when to when nobody was at work, before the workers of now: a stop is no slowness either. It came
        somewhere in the last bucket in which something ended."""
        since = self.at_work.since
        if since is None:
            return None
        before = [each.bucket for each in self.progress[lane_id] if (each.bucket + 1) * sums.BUCKET_SECONDS <= since]
        return (max(before) * sums.BUCKET_SECONDS, since) if before else None


def _pause(pressing: Sequence[Queued], now: float) -> tuple[float, float] | None:
    """From when to when all of them were paused, the last time; until now, if they are."""
    since, until = 0.0, now
    for each in pressing:
        if each.paused_since is not None:
            since = max(since, each.paused_since)
        elif each.past_pause is not None and each.past_pause[1] <= now:  # else a clock was set back
            since, until = max(since, each.past_pause[0]), min(until, each.past_pause[1])
        else:
            until = min(until, each.since)  # until it came
    return (since, until) if 0.0 < since < until else None


def _limits(config: UpstreamConfig | None) -> Limits:
    """None: whoever asks was not told of the upstream that the lane is of."""
    if config is None:
        return Limits()
    return Limits(config.requests_per_minute, config.tokens_per_minute, config.max_in_flight)


def _is_limited(config: UpstreamConfig) -> bool:
    """Does whoever asks name limits? Workers may have others, so what he was not told of is no reason to expect a time;
    the most calls at once that hold where nothing is said even less."""
    named = (config.requests_per_minute, config.tokens_per_minute)
    return any(limit is not None for limit in named) or config.max_in_flight != _UNTOLD_MAX_IN_FLIGHT


async def _view(
    db: Database,
    settings: Settings,
    lane_ids: Iterable[int],
    rows: Sequence[BatchRow],
    now: float,
    *,
    tenant_ids: Sequence[int] = (),
) -> _View:
    numbers = sorted(lane_ids)
    queue: dict[int, list[Queued]] = defaultdict(list)
    progress: dict[int, list[Progress]] = defaultdict(list)
    for each in await outlook.queue(db, numbers):
        queue[each.lane_id].append(each)
    since = int((now - LOOK_BACK_SECONDS) // sums.BUCKET_SECONDS)
    for bucket in await sums.progress(db, numbers, since_bucket=since):
        progress[bucket.lane_id].append(bucket)
    owners = {each.tenant_id for all_ in queue.values() for each in all_} | {row.tenant_id for row in rows}
    return _View(
        now,
        {
            row.id: _Lane(row.upstream, row.state, row.paused_until or 0.0, row.completion_tokens)
            for row in await lanes.read(db, numbers)
        },
        {upstream.name: upstream for upstream in settings.upstreams},
        queue,
        progress,
        await outlook.learned(db, numbers),
        await outlook.tenant_terms(db, owners | set(tenant_ids)),
        await workers.at_work(db, now=now),
    )


__all__ = ["Outlook", "Planned", "PlannedLane", "Wait", "of_batches", "of_planned"]
