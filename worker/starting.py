"""From permits to calls that start: limit by limit, as many as may, and never more claimed than that.

Lanes that share a limit (an upstream as a whole) take their permits together, and fairness divides them among all that
wants to go there, whatever its model: else each lane would have its turn in the limit, and classes, deadlines and
weights would mean something only inside of one.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from promptmill.store.workers import NOT_CONFIGURED
from worker.calls import Calls
from worker.claiming import Claiming
from worker.lane import HELD_BY_CAPS, LEARNED_PACE, Lane, Lanes
from worker.limits import Bucket, Grant, Limiter
from worker.probe import HANDFUL

#: Without a hint, new work is noticed after this long.
POLL_SECONDS: Final = 1.0
#: One claim takes at most this many jobs: enough to be cheap, few enough to be quick.
CLAIM_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class _Able:
    """A lane on which something may start, as far as the limiter has no say."""

    lane: Lane
    room: int | None  # by its probes; None: any number
    paced: int | None  # at the pace that was learned

    @property
    def most(self) -> int:
        # What a call takes, in tokens, shows with the first ones.
        first = None if self.lane.learned.call_tokens else HANDFUL
        return min(most for most in (CLAIM_AT_ONCE, first, self.room, self.paced) if most is not None)


class Starting:
    """What one worker starts."""

    def __init__(
        self, claiming: Claiming, calls: Calls, lanes: Lanes, limiter: Limiter, *, max_bytes: int,
        started: Callable[[], None], hurry: Callable[[int | None], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """`started` is told that calls were, `hurry` that so few places are what keeps others from it."""
        self._claiming = claiming
        self._calls = calls
        self._lanes = lanes
        self._limiter = limiter
        self._max_bytes = max_bytes
        self._started = started
        self._hurry = hurry
        self._clock = clock
        self._round = 0

    async def everywhere(self, *, worker_id: int) -> float:
        """Give every limit's lanes their turn; returns for how many seconds asking again is of no use."""
        groups: dict[str, list[Lane]] = defaultdict(list)
        for lane_id in sorted(self._claiming.lanes):
            groups[self._lanes[lane_id].limit.key].append(self._lanes[lane_id])
        turns, wait = list(groups.values()), POLL_SECONDS
        self._round += 1
        for index in range(len(turns)):  # the memory for bodies is everybody's: they take turns in being first
            wait = min(wait, await self._on(turns[(index + self._round) % len(turns)], worker_id))
        return wait

    async def _on(self, group: Sequence[Lane], worker_id: int) -> float:
        """Take permits, claim that many, start them; returns for how many seconds asking again is of no use."""
        free_bytes = self._max_bytes - self._calls.counts.bytes_in_flight
        able, wait = await self._able(group, free_bytes)
        if not able:
            return wait
        lanes = [each.lane for each in able]
        # What several lanes share is taken once; whether each of them is paused was asked before.
        buckets = lanes[0].buckets() if len(group) == 1 else [lanes[0].limit]
        costs = [lane.learned.call_tokens for lane in lanes if lane.learned.call_tokens] or [1.0]
        each_tokens = sum(costs) / len(costs)
        want = min(CLAIM_AT_ONCE, sum(one.most for one in able))
        grant = await self._limiter.acquire(buckets, want=want, tokens_each=each_tokens)
        if grant.binding == "in_flight":
            self._hurry(lanes[0].limits.max_in_flight)
        for one in able:
            one.lane.waiting_for = grant.binding or _held_to(one, grant.count)
        if not grant.count:
            return min(wait, _until(grant))
        claimed = await self._claim(able, buckets, grant, each_tokens, worker_id=worker_id, max_bytes=free_bytes)
        return min(wait, self._ask_again_in(able, grant, claimed))

    async def _claim(
        self, able: Sequence[_Able], buckets: Sequence[Bucket], grant: Grant, each_tokens: float, *, worker_id: int,
        max_bytes: int,
    ) -> int:  # fmt: skip
        claimed = 0
        most = {one.lane.id: one.most for one in able}
        try:
            jobs = await self._claiming.claim(
                [one.lane for one in able], grant.count, tokens_each=each_tokens, most=most, worker_id=worker_id,
                max_bytes=max_bytes,
            )  # fmt: skip
            claimed = len(jobs)
        finally:
            if unused := grant.count - claimed:
                await self._limiter.give_back(buckets, count=unused, tokens=unused * each_tokens)
        for job in jobs:
            self._calls.start(self._lanes[job.lane_id], job, granted_tokens=each_tokens)
        if jobs:
            self._started()
        return claimed

    async def _able(self, group: Sequence[Lane], free_bytes: int) -> tuple[list[_Able], float]:
        """Lanes on which something may start; and for how many seconds asking again is of no use on the others."""
        now, able, wait = self._clock(), [], POLL_SECONDS
        for lane in group:
            room = lane.room(now)
            seconds = self._nothing_may_start(lane, room, free_bytes)
            if seconds is None and len(group) > 1:
                seconds = await self._paused_for(lane)
            if seconds is None:
                able.append(_Able(lane, room, lane.pace_room(now)))
            else:
                wait = min(wait, seconds)
        return able, wait

    async def _paused_for(self, lane: Lane) -> float | None:
        """Others may have been asked for patience."""
        answer = await self._limiter.acquire([lane.own_bucket], want=0, tokens_each=0.0)
        if answer.binding != "paused":
            return None
        lane.waiting_for = answer.binding
        return _until(answer)

    def _ask_again_in(self, able: Sequence[_Able], grant: Grant, claimed: int) -> float:
        """For how many seconds asking again is of no use, after a claim."""
        if claimed < grant.count:
            for one in able:
                one.lane.waiting_for = ""
            held = [seconds for one in able if (seconds := self._held_by_caps(one.lane)) is not None]
            if len(held) < len(able) and self._more_is_there(able, claimed):
                return 0.0  # what a cap made wait is over: the claim took longer; or another lane has more room
            return min(held, default=POLL_SECONDS)
        if grant.binding is not None:
            return _until(grant)
        paced = [one for one in able if one.paced is not None and one.paced == one.most]
        if paced and len(paced) == len(able):
            return min(self._held_by_pace(one.lane) for one in paced)
        now = self._clock()
        return 0.0 if any(one.lane.room(now) != 0 for one in able) else POLL_SECONDS

    def _more_is_there(self, able: Sequence[_Able], claimed: int) -> bool:
        left = [one for one in able if one.lane.id in self._claiming.lanes]
        if len(able) > 1:  # where nothing was found, less is looked for the next time
            return any(one.room is None for one in left)
        return bool(left and claimed and self._calls.caps.in_use)

    def _nothing_may_start(self, lane: Lane, room: int | None, free_bytes: int) -> float | None:
        """For how many seconds, where that is so whatever the limiter says."""
        now = self._clock()
        if room == 0:
            lane.waiting_for = _shut(lane)
            return lane.opens_in(now) or POLL_SECONDS
        if free_bytes <= 0 and self._calls:
            lane.waiting_for = "bytes"
            return POLL_SECONDS
        if lane.pace_room(now) == 0:
            return self._held_by_pace(lane)
        return self._held_by_caps(lane)

    def _held_by_pace(self, lane: Lane) -> float:
        lane.waiting_for = LEARNED_PACE
        return min(lane.pace.wait_seconds(self._clock()), POLL_SECONDS)

    def _held_by_caps(self, lane: Lane) -> float | None:
        blocked = self._claiming.blocked_seconds(lane.id)
        if not blocked:
            return None
        lane.waiting_for = HELD_BY_CAPS
        self._hurry(self._calls.caps.fewest_places)
        return min(blocked, POLL_SECONDS)


def _shut(lane: Lane) -> str:
    """Why a lane lets no call through."""
    if not lane.is_configured:
        return NOT_CONFIGURED
    return "halted" if lane.halted else "first answers"


def _held_to(one: _Able, count: int) -> str:
    """What but its limit keeps a lane from starting more than so many."""
    if one.paced is not None and count >= one.paced:
        return LEARNED_PACE
    return "first answers" if one.room is not None and count >= one.room else ""


def _until(grant: Grant) -> float:
    return POLL_SECONDS if grant.wait_seconds is None else grant.wait_seconds
