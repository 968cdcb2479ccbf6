"""What fairness is asked about: batches, their tenants, and what both were served before."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from promptmill.priority import HELD, HIGH, INTERACTIVE

#: What a class keeps at least of the permits while higher ones could use all of them.
FLOOR: Final = 0.02
#: And what is meant for it: a little more, since it begins with nothing, and calls come whole.
MEANT: Final = 0.022
#: How many permits of the past weigh in: a newcomer is ahead of the others for half as many at most.
WINDOW: Final = 256.0
_FORGOTTEN: Final = 1e-30
_MOST_OWED: Final = 10.0
_LOWEST_NORMAL: Final = -999


@dataclass(frozen=True, slots=True)
class Contender:
    """A batch that has ready jobs on the lane."""

    batch_id: int
    priority: int = 0  # higher goes first; its class among all, the rest of it among its tenant's
    in_flight: int = 0  # of this batch, now
    tenant_id: int = 1
    weight: float = 1.0  # among the tenant's batches of the same priority
    deadline: float | None = None  # when its last call has to start
    ready: int | None = None  # None: not known, and taken for many
    room: int | None = None  # how many more its own caps let start now (in flight, rate, tokens); None: no cap
    waiting_since: float | None = None  # since when there is work of it


@dataclass(frozen=True, slots=True)
class Tenant:
    """What holds for all batches of a tenant together."""

    weight: float = 1.0
    #: On the lane, with the calls of batches that have nothing ready any more. None: those of its contenders.
    in_flight: int | None = None
    room: int | None = None  # as a contender's


@dataclass(frozen=True, slots=True)
class Served:
    """What the last permits of a lane went to. It fades: being alone for a day is no debt afterwards."""

    tenants: Mapping[int, float] = field(default_factory=dict)
    batches: Mapping[int, float] = field(default_factory=dict)
    #: Class → permits that it is owed from the claims in which others went first.
    owed: Mapping[int, float] = field(default_factory=dict)

    def noting(self, contenders: Sequence[Contender], split: Sequence[tuple[int, int]]) -> "Served":
        """The same after a claim: `split` says what each batch really got, which may be less than its share."""
        got = dict(split)
        tenants, batches, classes = dict(self.tenants), dict(self.batches), Counter[int]()
        for each in contenders:
            count = got.get(each.batch_id, 0)
            classes[class_of(each.priority)] += count
            if count:
                tenants[each.tenant_id] = tenants.get(each.tenant_id, 0.0) + count
                batches[each.batch_id] = batches.get(each.batch_id, 0.0) + count
        total, top = sum(got.values()), max(classes, default=0)
        owed = {
            rank: min(max(self.owed.get(rank, 0.0) + MEANT * total - count, -1.0), _MOST_OWED)
            for rank, count in classes.items()
            if rank != top
        }
        return Served(_faded(tenants), _faded(batches), owed)


def _faded(counts: dict[int, float]) -> dict[int, float]:
    scale = min(1.0, WINDOW / (sum(counts.values()) or 1.0))
    return {key: count * scale for key, count in counts.items() if count * scale > _FORGOTTEN}


def class_of(priority: int) -> int:
    """A priority's class, as a rank: 4 calls that are held, 3 interactive, 2 high, 1 normal, 0 background."""
    return (priority >= _LOWEST_NORMAL) + (priority >= HIGH) + (priority >= INTERACTIVE) + (priority >= HELD)
