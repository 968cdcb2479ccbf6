"""Which batches the next permits go to: a pure function of what is active, asked anew at every claim.

The order is priority, then fair shares: permits go one by one to the batch that has the fewest jobs in flight, so a
batch of ten is not stuck behind one of a million.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contender:
    """A batch that has ready jobs on the lane."""

    batch_id: int
    priority: int = 0  # higher goes first
    in_flight: int = 0  # of this batch, now


def shares(contenders: Sequence[Contender], permits: int) -> list[tuple[int, int]]:
    """(batch_id, permits) for a claim; the counts add up to `permits` unless there is nobody to give them to.

    All contenders of the highest priority first. Nobody is told how many ready jobs a contender has: a claim that
    finds fewer than its share leaves permits over, and the next round gives them to the others.

    >>> shares([Contender(1, in_flight=3), Contender(2)], 5)
    [(1, 1), (2, 4)]
    """
    if not contenders or permits <= 0:
        return []
    top = max(contender.priority for contender in contenders)
    queue = [(c.in_flight, c.batch_id) for c in contenders if c.priority == top]
    if len(queue) == 1:
        return [(queue[0][1], permits)]
    heapq.heapify(queue)
    given: dict[int, int] = {}
    for _ in range(permits):
        in_flight, batch_id = heapq.heappop(queue)
        given[batch_id] = given.get(batch_id, 0) + 1
        heapq.heappush(queue, (in_flight + 1, batch_id))
    return sorted(given.items())
