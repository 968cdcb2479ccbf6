"""Whose turn it is on each lane, and what is claimed for it: late, when the permits are at hand.

What is known of the batches is as old as the last look; so orders (a pause, a priority, a cap) act from the next look
on.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, KeysView, Mapping
from dataclasses import replace

from promptmill.engine import Database
from promptmill.fairness import Contender, Scarce, Served, Tenant, shares
from promptmill.foresight import UNSEEN_ANSWER_TOKENS, Price
from promptmill.settings import Settings
from promptmill.store import batches, claims
from promptmill.store.active import Active, aborting, active
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
        self._served: defaultdict[int, Served] = defaultdict(Served)  # lane id → what its last permits went to
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
        that before `know`. Calls of batches that were cancelled so are aborted."""
        if (self._calls or self._calls.holds_any()) and (cancelled := await aborting(self._db)):
            self._calls.abort(cancelled)
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

    async def claim(self, lane: Lane, permits: int, *, worker_id: int, max_bytes: int) -> list[Claimed]:
        """Jobs for so many permits, or as many as there are."""
        found = self._active.get(lane.id, [])
        contenders = [self._contender(each, permits) for each in found]
        taken: Counter[str] = Counter()
        used: Counter[str] = Counter()
        each_tokens = lane.learned.call_tokens or 1.0
        try:
            split = await self._split(lane, found, contenders, permits, taken)
            jobs = await claims.claim(
                self._db,
                worker_id=worker_id,
                lane_id=lane.id,
                shares=split,
                max_bytes=max_bytes,
                until={each.batch_id: each.canary_until for each in found if each.canary_until is not None},
                expected=self._expected(lane, found),
                now=self._clock(),
            )
            got = Counter(job.batch_id for job in jobs)
            for each in found if taken else ():
                used[batch_key(each)] += got[each.batch_id]
                used[tenant_key(each)] += got[each.batch_id]
        finally:
            if taken:
                unused = {key: count - used[key] for key, count in taken.items()}
                await self._calls.caps.give_back(unused, tokens_each=each_tokens)
        self._served[lane.id] = self._served[lane.id].noting(contenders, sorted(got.items()))
        if sum(job.body_bytes for job in jobs) < max_bytes:
            # Who had fewer ready jobs than its share has none left: the next round goes to the others.
            empty = {batch_id for batch_id, count in split if got[batch_id] < count}
            self._short |= empty & self._prices.keys()
            if rest := [each for each in found if each.batch_id not in empty]:
                self._active[lane.id] = rest
            else:
                self._active.pop(lane.id, None)
        return jobs

    def _contender(self, each: Active, permits: int) -> Contender:
        in_flight = self._calls.of_batch[each.lane_id, each.batch_id]
        # The guess is for deadlines. That it may be too low must not keep permits from being used.
        ready = max(each.remaining - in_flight, min(permits, each.at_most - in_flight), 1)
        return Contender(
            each.batch_id, each.priority, in_flight, each.tenant_id, each.weight, each.deadline, ready,
            waiting_since=each.waiting_since,
        )  # fmt: skip

    def _expected(self, lane: Lane, found: Iterable[Active]) -> Mapping[int, Expected]:
        if not self._prices:
            return {}
        tokens = lane.learned.answer_tokens
        tokens = UNSEEN_ANSWER_TOKENS if tokens is None else tokens
        return {each.batch_id: Expected(tokens, self._prices.get(each.batch_id)) for each in found if each.has_budget}

    async def _split(
        self, lane: Lane, found: list[Active], contenders: list[Contender], permits: int, taken: Counter[str]
    ) -> list[tuple[int, int]]:
        """(batch id, permits) in the order of their ids; what is taken from caps for it is noted in `taken`."""
        in_flight = self._calls.of_tenants(lane.id)
        tenants = {each.tenant_id: Tenant(each.tenant_weight, in_flight[each.tenant_id]) for each in found}
        if not self._calls.caps.in_use:
            return self._shares(lane, contenders, permits, tenants)
        caps, tokens = self._calls.caps, lane.learned.call_tokens or 1.0
        ready: Counter[int] = Counter()
        for contender in contenders:
            ready[contender.tenant_id] += contender.ready or 0
        for each in found:
            key = tenant_key(each)
            if key in caps and tenants[each.tenant_id].room is None:
                taken[key] = await caps.take(key, min(permits, ready[each.tenant_id]), tokens_each=tokens)
                tenants[each.tenant_id] = replace(tenants[each.tenant_id], room=taken[key])
        keys = {each.batch_id: key for each in found if (key := batch_key(each)) in caps}
        for _ in range(_SPLITS):
            split = self._shares(lane, contenders, permits, tenants)
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
        self, lane: Lane, contenders: list[Contender], permits: int, tenants: Mapping[int, Tenant]
    ) -> list[tuple[int, int]]:
        # Where the rate is what is scarce, starts are shared; else calls in flight are.
        scarce: Scarce = "starts" if lane.waiting_for in ("rpm", "tpm", LEARNED_PACE) else "places"
        return shares(
            contenders, permits, tenants=tenants, served=self._served[lane.id], scarce=scarce, now=self._clock(),
            seconds_per_permit=lane.seconds_per_permit(), call_seconds=lane.learned.call_seconds or 0.0,
        )  # fmt: skip
