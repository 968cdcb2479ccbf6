"""Which batches the next permits go to: a pure function of what is active, asked anew at every claim.

The order is: class, then deadlines at risk, then fair shares.

1. **Class first** (`priority.py`), but each class below keeps `FLOOR` of the permits, so that background never starves.
2. Inside a class, batches whose **deadline is at risk** (`urgency.py`): tight ones first, then those that press.
3. Then **weighted fair shares between tenants**, whatever priorities their batches have: nobody outbids a neighbour.
   Inside a tenant higher integers go first; equal ones share by weight. A batch of ten is not stuck behind one of a
   million.

What is shared is what is scarce: calls in flight where places are, starts where a rate is. A call of an hour takes a
place from its neighbours for an hour, but from their rate only once.

Nothing is remembered here. What went before comes in as `Served`, and the caller keeps what `Served.noting` returns.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Final, Literal, TypeAlias

from promptmill.contenders import FLOOR, MEANT, Contender, Served, Tenant, class_of
from promptmill.urgency import Urgent, at_risk

__all__ = ["AGEING_SECONDS", "FLOOR", "Contender", "Scarce", "Served", "Tenant", "class_of", "shares"]

#: A class that has waited so long does not wait for its share to add up, where this drain has just begun.
AGEING_SECONDS: Final = 900.0
#: Three places cannot be shared 1:2:3 at any moment, only over time: whoever was served more than its part counts as
#: holding so much of a place more (by weight, the lightest's). Under a half: among equals the calls in flight decide.
_PART_OF_A_PLACE: Final = 0.49

Scarce: TypeAlias = Literal["places", "starts"]


def shares(
    contenders: Sequence[Contender],
    permits: int,
    *,
    tenants: Mapping[int, Tenant] | None = None,
    served: Served | None = None,
    scarce: Scarce = "places",
    now: float | None = None,
    seconds_per_permit: float | None = None,
) -> list[tuple[int, int]]:
    """(batch_id, permits) for a claim; the counts add up to `permits` unless nobody has use or room for more.

    Without `now` there are no deadlines. `seconds_per_permit` is the lane's pace, of all workers together, and None
    while it is not known.
    Where the number of ready jobs is not known, a claim that finds fewer than the share leaves permits over, and the
    next round gives them to the others.

    >>> shares([Contender(1, in_flight=3), Contender(2)], 5)
    [(1, 1), (2, 4)]
    """
    if permits <= 0 or not contenders:
        return []
    claim = _Claim(contenders, permits, tenants or {}, served or Served(), scarce)
    groups: dict[int, list[Contender]] = defaultdict(list)
    for each in contenders:
        if claim.can_take(each):
            groups[class_of(each.priority)].append(each)
    ranks = sorted(groups, reverse=True)
    floors = _floors(ranks, claim, now)
    ahead = 0
    for place, rank in enumerate(ranks):
        kept = sum(floors[lower] for lower in ranks if lower < rank)
        urgent: Urgent[Contender] = Urgent() if now is None else at_risk(
            groups[rank], ahead=ahead, permits=permits, now=now, seconds_per_permit=seconds_per_permit,
        )  # fmt: skip
        claim.give_class(urgent, groups[rank], claim.left - kept)
        ahead += sum(each.ready or 0 for each in groups[rank])
        for higher in ranks[:place]:  # what this class had no use for
            claim.share(groups[higher], claim.left - kept)
    return sorted(claim.given.items())


class _Claim:
    """The state of one call of `shares`: who has how much, and who may take more."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        permits: int,
        tenants: Mapping[int, Tenant],
        served: Served,
        scarce: Scarce,
    ) -> None:
        self.left = self.permits = permits
        self.given: dict[int, int] = {}
        self.tenant_given: Counter[int] = Counter()
        self.served, self.scarce = served, scarce
        self.class_in_flight: Counter[int] = Counter()
        in_flight: Counter[int] = Counter()
        for each in contenders:
            in_flight[each.tenant_id] += each.in_flight
            self.class_in_flight[class_of(each.priority)] += each.in_flight
        self.waiting_since: dict[int, float] = {}
        for each in contenders:
            if each.waiting_since is not None:
                rank = class_of(each.priority)
                self.waiting_since[rank] = min(each.waiting_since, self.waiting_since.get(rank, math.inf))
        self.tenant_in_flight: dict[int, int] = {}
        self.tenant_weight: dict[int, float] = {}
        self.tenant_room: dict[int, int] = {}
        for tenant_id, own in in_flight.items():
            tenant = tenants.get(tenant_id, Tenant())
            self.tenant_in_flight[tenant_id] = own if tenant.in_flight is None else tenant.in_flight
            self.tenant_weight[tenant_id] = tenant.weight
            self.tenant_room[tenant_id] = permits if tenant.room is None else tenant.room
        self.room = {each.batch_id: _room(each, permits) for each in contenders}
        self.tenant_surplus = _surplus(self.tenant_weight, served.tenants)
        self.batch_surplus: dict[int, float] = {}
        if served.batches:
            rivals: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
            for each in contenders:
                rivals[each.tenant_id, each.priority][each.batch_id] = each.weight
            for weights in rivals.values():
                self.batch_surplus |= _surplus(weights, served.batches)

    def can_take(self, each: Contender) -> bool:
        return self.room[each.batch_id] > 0 and self.tenant_room[each.tenant_id] > 0

    def take(self, each: Contender, count: int) -> None:
        self.given[each.batch_id] = self.given.get(each.batch_id, 0) + count
        self.tenant_given[each.tenant_id] += count
        self.room[each.batch_id] -= count
        self.tenant_room[each.tenant_id] -= count
        self.left -= count

    def give_class(self, urgent: Urgent[Contender], group: Sequence[Contender], permits: int) -> None:
        """So many permits to one class: all that goes first, then what presses, then the others."""
        until = self.left - permits
        for each in urgent.first:
            count = min(self.left - until, self.room[each.batch_id], self.tenant_room[each.tenant_id])
            if count > 0:
                self.take(each, count)
        self.share(urgent.pressing, self.left - until)
        self.share(group, self.left - until)

    def share(self, group: Sequence[Contender], permits: int) -> None:
        """One by one, to whoever has least for its weight."""
        if permits <= 0:
            return
        of_tenant: dict[int, list[Contender]] = defaultdict(list)
        for each in group:
            if self.can_take(each):
                of_tenant[each.tenant_id].append(each)
        queues: dict[int, _TenantQueue] = {}
        heap = [(*self._tenant_load(tenant_id), tenant_id) for tenant_id in of_tenant]
        heapify(heap)
        while heap and permits > 0:
            tenant_id = heap[0][-1]
            queue = queues.get(tenant_id)
            if queue is None:  # only now: of hundreds, few have their turn in one claim
                queue = queues[tenant_id] = _TenantQueue()
                for each in of_tenant[tenant_id]:
                    queue.add(each, self._batch_load(each))
            each = queue.first()
            self.take(each, 1)
            permits -= 1
            queue.served(self._batch_load(each) if self.room[each.batch_id] else None)
            if queue.is_empty or not self.tenant_room[tenant_id]:
                heappop(heap)
            else:
                heapreplace(heap, (*self._tenant_load(tenant_id), tenant_id))

    def _tenant_load(self, tenant_id: int) -> tuple[float, float]:
        given, weight = self.tenant_given[tenant_id], self.tenant_weight[tenant_id]
        places = (self.tenant_in_flight[tenant_id] + given + self.tenant_surplus[tenant_id]) / weight
        starts = (self.served.tenants.get(tenant_id, 0.0) + given) / weight
        return (places, starts) if self.scarce == "places" else (starts, places)

    def _batch_load(self, each: Contender) -> tuple[float, float]:
        given = self.given.get(each.batch_id, 0)
        places = (each.in_flight + given + self.batch_surplus.get(each.batch_id, 0.0)) / each.weight
        starts = (self.served.batches.get(each.batch_id, 0.0) + given) / each.weight
        return (places, starts) if self.scarce == "places" else (starts, places)


class _TenantQueue:
    """A tenant's batches of one class: higher integers first, among equals the one that has least."""

    def __init__(self) -> None:
        self._levels: dict[int, list[tuple[float, float, float, int, Contender]]] = defaultdict(list)
        self._order: list[int] = []

    def add(self, each: Contender, load: tuple[float, float]) -> None:
        since = math.inf if each.waiting_since is None else each.waiting_since
        self._levels[each.priority].append((*load, since, each.batch_id, each))

    def first(self) -> Contender:
        if not self._order:
            self._order = sorted(self._levels)
            for heap in self._levels.values():
                heapify(heap)
        return self._levels[self._order[-1]][0][-1]

    def served(self, load: tuple[float, float] | None) -> None:
        """The first one was; `load` is what it has now, None when it can take no more."""
        heap = self._levels[self._order[-1]]
        if load is not None:
            heapreplace(heap, (*load, *heap[0][2:]))
            return
        heappop(heap)
        if not heap:
            del self._levels[self._order.pop()]

    @property
    def is_empty(self) -> bool:
        return not self._levels


def _surplus(weights: Mapping[int, float], served: Mapping[int, float]) -> dict[int, float]:
    """How much more than its part each was served, but not so much that it outweighs a place of the lightest."""
    level = sum(served.get(key, 0.0) for key in weights) / sum(weights.values())
    bound = _PART_OF_A_PLACE / min(weights.values())
    return {
        key: min(max(served.get(key, 0.0) - weight * level, -bound * weight), bound * weight)
        for key, weight in weights.items()
    }


def _room(each: Contender, permits: int) -> int:
    ready = permits if each.ready is None else each.ready
    return min(permits, ready, permits if each.room is None else each.room)


def _floors(ranks: Sequence[int], claim: _Claim, now: float | None) -> dict[int, int]:
    """Class → permits that it gets although higher ones could use them."""
    floors = dict.fromkeys(ranks, 0)
    left = claim.permits
    in_flight = sum(claim.class_in_flight.values()) + claim.permits
    for rank in ranks[1:]:
        credit = claim.served.owed.get(rank)
        count = math.floor((credit or 0.0) + MEANT * claim.permits + 0.5)
        if credit is None and now is not None and now - claim.waiting_since.get(rank, now) >= AGEING_SECONDS:
            count = max(count, 1)
        if claim.scarce == "places":  # long calls must not pile up to more than the floor
            count = min(count, math.ceil(MEANT * in_flight) - claim.class_in_flight[rank])
        floors[rank] = max(0, min(count, left))
        left -= floors[rank]
    return floors
