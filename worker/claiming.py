"""Whose turn it is on each lane, and what is claimed for it: late, when the permits are at hand.

What is known of the batches is as old as the last look; so orders (a pause, a priority, a cap) act from the next look
on.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, KeysView, Mapping, Sequence
from dataclasses import replace

from promptmill.engine import Database
from promptmill.fairness import Contender, Scarce, Served, Tenant, shares
from promptmill.foresight import UNSEEN_ANSWER_TOKENS, Price
from promptmill.settings import Settings
from promptmill.store import batches, claims
from promptmill.store.aborts import aborting
from promptmill.store.active import Active, active
from promptmill.store.budgets import Expected
from promptmill.store.claims import Claimed
from worker.calls import Calls
from worker.caps import batch_key, tenant_key
from worker.lane import LEARNED_PACE, Lane

#: How often a claim is split anew because caps let fewer calls start than was hoped for; what is left then, another
#: round gives away.
_SPLITS = 3


class Claiming:
    """What one worker knows of the batches with something to claim."""

    def __init__(self, db: Database, settings: Settings, calls: Calls, *, clock: Callable[[], float]) -> None:
        self._db = db
        self._settings = settings
        self._calls = calls
        self._clock = clock
        self._active: dict[int, list[Active]] = {}  # lane id → batches with ready jobs on it
        #: How many workers there are: each sees a part of what the lanes do.
        self.workers = 1
        self._served: defaultdict[str, Served] = defaultdict(Served)  # a limit's key → what its last permits went to
        self._due: defaultdict[tuple[int, int], float] = defaultdict(float)  # (lane id, batch id) → permits owed to it
        self._canaries: set[int] = set()
        self._prices: dict[int, Price | None] = {}  # of batches with a budget
        self._short: set[int] = set()  # of these, those whose budget let fewer calls start than there was room for

    @property
    def lanes(self) -> KeysView[int]:
        """Lanes on which there is something to claim."""
        return self._active.keys()

    def waits_for_answers(self, batch_ids: set[int]) -> bool:
        """May answers of these batches decide something: their canary, or what their budget was reserved for?"""
        return not batch_ids.isdisjoint(self._canaries) or not batch_ids.isdisjoint(self._short)

    async def look(self, only: Collection[int] | None) -> list[Active]:
        """See which batches have ready jobs and on which lanes, and how they are to be handled; nothing is claimed by
        that before `know`. Calls that somebody wants broken off are aborted."""
        if (self._calls or self._calls.holds_any()) and (wanted := await aborting(self._db)):
            self._calls.abort(wanted)
        found = await active(self._db, now=self._clock(), only=only)
        budgets = {each.batch_id for each in found if each.has_budget}
        self._prices = {batch_id: await self._dearest(batch_id) for batch_id in budgets}
        await self._calls.caps.seen(found)
        return found

    def know(self, found: Iterable[Active]) -> None:
        """From now on jobs are claimed by what was seen."""
        by_lane: dict[int, list[Active]] = defaultdict(list)
        for each in found:
            by_lane[each.lane_id].append(each)
        self._active = dict(by_lane)
        there = {(each.lane_id, each.batch_id) for all_ in by_lane.values() for each in all_}
        self._due = defaultdict(float, {key: due for key, due in self._due.items() if key in there})
        self._short.clear()
        canaries = {each.batch_id for each in found if each.canary_until is not None}
        self._canaries = canaries | {batch_id for batch_id in self._canaries if self._calls.places(batch_id)}

    async def _dearest(self, batch_id: int) -> Price | None:
        names = await batches.lane_names(self._db, batch_id)
        prices = [self._settings.price_for(model) for _, model in names.values()]
        known = [price for price in prices if price is not None]
        if not known or len(known) < len(prices):
            return None
        return Price(max(price.prompt for price in known), max(price.completion for price in known))

    def blocked_seconds(self, lane_id: int) -> float:
        """For so long the caps of batches and tenants let nothing start on the lane; 0: something may."""
        if not self._calls.caps.in_use or lane_id not in self._active:
            return 0.0
        return min(self._calls.caps.blocked_seconds(each.batch_id) for each in self._active[lane_id])

    async def claim(
        self, lanes: Sequence[Lane], permits: int, *, tokens_each: float, most: Mapping[int, int], worker_id: int,
        max_bytes: int,
    ) -> list[Claimed]:  # fmt: skip
        """Jobs for so many permits (of so many tokens each), or as many as there are. The lanes are those of one limit;
        `most`: lane id → as many may start there."""
        found = [each for lane in lanes for each in self._active.get(lane.id, [])]
        group = _Group(lanes, found, tokens_each)
        contenders = [self._contender(group, own, permits) for own in group.by_batch.values()]
        taken: Counter[str] = Counter()
        used: Counter[str] = Counter()
        jobs: list[Claimed] = []
        got: Counter[tuple[int, int]] = Counter()  # (lane id, batch id) → jobs
        try:
            split = await self._split(group, contenders, permits, taken)
            wanted = self._by_lane(group, split, permits, most)
            for lane in lanes:
                if (room := max_bytes - sum(job.body_bytes for job in jobs)) > 0:
                    jobs += await self._claim_on(lane, wanted[lane.id], worker_id=worker_id, max_bytes=room)
            got.update((job.lane_id, job.batch_id) for job in jobs)
            for own in group.by_batch.values() if taken else ():
                count = sum(got[each.lane_id, each.batch_id] for each in own)
                used[batch_key(own[0])] += count
                used[tenant_key(own[0])] += count
        finally:
            if taken:
                unused = {key: count - used[key] for key, count in taken.items()}
                await self._calls.caps.give_back(unused, tokens_each=tokens_each)
        noted = Counter(job.batch_id for job in jobs)
        self._served[group.key] = self._served[group.key].noting(contenders, sorted(noted.items()))
        if sum(job.body_bytes for job in jobs) < max_bytes:
            for lane in lanes:
                self._note_empty(lane.id, {batch for batch, n in wanted[lane.id] if got[lane.id, batch] < n})
        return jobs

    async def _claim_on(
        self, lane: Lane, wanted: Sequence[tuple[int, int]], *, worker_id: int, max_bytes: int
    ) -> list[Claimed]:
        if not wanted:
            return []
        found = self._active[lane.id]
        return await claims.claim(
            self._db,
            worker_id=worker_id,
            lane_id=lane.id,
            shares=wanted,
            max_bytes=max_bytes,
            until={each.batch_id: each.canary_until for each in found if each.canary_until is not None},
            expected=self._expected(lane, found),
            now=self._clock(),
        )

    def _note_empty(self, lane_id: int, empty: set[int]) -> None:
        """Who had fewer ready jobs than its share has none left: the next round goes to the others."""
        self._short |= empty & self._prices.keys()
        if rest := [each for each in self._active.get(lane_id, []) if each.batch_id not in empty]:
            self._active[lane_id] = rest
        else:
            self._active.pop(lane_id, None)

    def _ready(self, each: Active, permits: int) -> int:
        in_flight = self._calls.of_batch[each.lane_id, each.batch_id]
        # The guess is for deadlines. That it may be too low must not keep permits from being used.
        return max(each.remaining - in_flight, min(permits, each.at_most - in_flight), 1)

    def _contender(self, group: "_Group", own: Sequence[Active], permits: int) -> Contender:
        """A batch, whatever lanes of the limit its jobs are on."""
        first = own[0]
        in_flight = sum(self._calls.of_batch[each.lane_id, each.batch_id] for each in own)
        deadline = None if first.deadline is None else first.deadline - max(group.call_seconds(each) for each in own)
        return Contender(
            first.batch_id, first.priority, in_flight, first.tenant_id, first.weight, deadline,
            sum(self._ready(each, permits) for each in own), waiting_since=first.waiting_since,
        )  # fmt: skip

    def _by_lane(
        self, group: "_Group", split: Sequence[tuple[int, int]], permits: int, most: Mapping[int, int]
    ) -> dict[int, list[tuple[int, int]]]:
        """Lane id → (batch id, permits): a batch's are divided by what it has on each lane. What cannot be divided now
        is kept in mind, so that its models go on side by side."""
        wanted: dict[int, list[tuple[int, int]]] = {lane.id: [] for lane in group.lanes}
        room = dict(most)
        for batch_id, count in split:
            own = group.by_batch[batch_id]
            ready = [self._ready(each, permits) for each in own]
            for each, here in zip(own, ready, strict=True):
                self._due[each.lane_id, batch_id] += count * here / sum(ready)
            left = count
            for each in sorted(own, key=lambda one: -self._due[one.lane_id, batch_id]):
                part = min(left, room[each.lane_id], math.ceil(self._due[each.lane_id, batch_id]))
                if part > 0:
                    wanted[each.lane_id].append((batch_id, part))
                    self._due[each.lane_id, batch_id] -= part
                    room[each.lane_id] -= part
                    left -= part
            for each in own:  # a lane that could take nothing has no claim to all of it later
                self._due[each.lane_id, batch_id] = min(self._due[each.lane_id, batch_id], 1.0)
        return wanted

    def _expected(self, lane: Lane, found: Iterable[Active]) -> Mapping[int, Expected]:
        if not self._prices:
            return {}
        tokens = lane.learned.answer_tokens
        tokens = UNSEEN_ANSWER_TOKENS if tokens is None else tokens
        return {each.batch_id: Expected(tokens, self._prices.get(each.batch_id)) for each in found if each.has_budget}

    async def _split(
        self, group: "_Group", contenders: list[Contender], permits: int, taken: Counter[str]
    ) -> list[tuple[int, int]]:
        """(batch id, permits) in the order of their ids; what is taken from caps for it is noted in `taken`."""
        found = [own[0] for own in group.by_batch.values()]
        in_flight = sum((self._calls.of_tenants(lane.id) for lane in group.lanes), Counter[int]())
        tenants = {each.tenant_id: Tenant(each.tenant_weight, in_flight[each.tenant_id]) for each in found}
        if not self._calls.caps.in_use:
            return self._shares(group, contenders, permits, tenants)
        caps, tokens = self._calls.caps, group.tokens_each
        ready: Counter[int] = Counter()
        for contender in contenders:
            ready[contender.tenant_id] += contender.ready or 0
        for each in found:
            key = tenant_key(each)
            if key in caps and tenants[each.tenant_id].room is None:
                taken[key] = await caps.take(key, min(permits, ready[each.tenant_id]), tokens_each=tokens)
                tenants[each.tenant_id] = replace(tenants[each.tenant_id], room=taken[key])
        keys = {each.batch_id: key for each in found if (key := batch_key(each)) in caps}
        # Those of which it is known are not found out one split at a time.
        contenders = [
            replace(each, room=0) if each.batch_id in keys and caps.blocked_seconds(each.batch_id) else each
            for each in contenders
        ]
        for _ in range(_SPLITS):
            split = self._shares(group, contenders, permits, tenants)
            short: dict[int, int] = {}
            for batch_id, count in split:
                key = keys.get(batch_id, "")
                if key and count > taken[key]:
                    taken[key] += await caps.take(key, count - taken[key], tokens_each=tokens)
                    if count > taken[key]:
                        short[batch_id] = taken[key]
            if not short:
                return split
            contenders = [
                replace(each, room=short[each.batch_id]) if each.batch_id in short else each for each in contenders
            ]
        return [(batch_id, short.get(batch_id, count)) for batch_id, count in split if short.get(batch_id, count)]

    def _shares(
        self, group: "_Group", contenders: list[Contender], permits: int, tenants: Mapping[int, Tenant]
    ) -> list[tuple[int, int]]:
        # Where the rate is what is scarce, starts are shared; else calls in flight are.
        waits = {lane.waiting_for for lane in group.lanes}
        scarce: Scarce = "places" if waits.isdisjoint(("rpm", "tpm", LEARNED_PACE)) else "starts"
        return shares(
            contenders, permits, tenants=tenants, served=self._served[group.key], scarce=scarce, now=self._clock(),
            seconds_per_permit=group.seconds_per_permit(self.workers),
        )  # fmt: skip


class _Group:
    """Lanes of one limit, and the batches that have something to claim there."""

    def __init__(self, lanes: Sequence[Lane], found: Iterable[Active], tokens_each: float) -> None:
        self.lanes = lanes
        self.tokens_each = tokens_each
        self.key = lanes[0].limit.key
        self.by_batch: dict[int, list[Active]] = defaultdict(list)
        self._left: Counter[int] = Counter()  # lane id → jobs
        for each in found:
            self.by_batch[each.batch_id].append(each)
            self._left[each.lane_id] += each.remaining
        self._by_id = {lane.id: lane for lane in lanes}

    def call_seconds(self, each: Active) -> float:
        """How long a call of the batch takes on its lane, as far as is known."""
        return self._by_id[each.lane_id].learned.call_seconds or 0.0

    def seconds_per_permit(self, workers: int) -> float | None:
        """How long it takes to start one more call: the mean over what is left to do."""
        paces = {lane.id: lane.seconds_per_permit(workers) for lane in self.lanes}
        known = [(pace, self._left[lane_id]) for lane_id, pace in paces.items() if pace is not None]
        jobs = sum(left for _, left in known)
        return sum(pace * left for pace, left in known) / jobs if jobs else None
