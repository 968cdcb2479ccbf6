"""Whose deadline is at risk: pure arithmetic over remaining work and the lane's pace.

A batch with a day's window is in no hurry in the morning: if every deadline went first, fair shares would never be
asked, since every batch of OpenAI's dialect has one. So a deadline counts as much as it is near:

- It is **tight** when the work up to it would take more than half of the time that is left, or when that is ten
  minutes or less. Tight deadlines go first, the earliest before the others, whatever the shares.
- It is **pressing** when that work would take more than an eighth of the time. What presses shares the lane by weight,
  before what does not; but for every sixteenth second, so that what has no deadline goes on.
- What is **small** waits for none of them: work that takes less than a hundredth of the time that the deadlines leave
  over endangers none. So ten jobs are not stuck behind 100,000 that have until tomorrow.

Two laws follow, and the tests hold them against an oracle that always takes the earliest deadline (EDF; Liu & Layland
1973). What the lane can do in time from here on is done in time. And whatever comes later: windows of minutes hold up
to the lane's full rate, longer ones up to three quarters of it. Above that some may miss, when others come late and
tight: to hold those too, deadlines would always have to go first, and shares would mean nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

#: A deadline is tight when the work up to it takes more than this part of the time that is left.
TIGHT: Final = 1 / 2
#: And pressing from this part on, but for one second of so many.
PRESSING: Final = 1 / 8
BREATH_SECONDS: Final = 16
#: In the last ten minutes nothing is left to chance. Also where the pace or the remaining work is not known.
NEAR_SECONDS: Final = 600.0
#: Of the time that all deadlines together leave over, small work may take so much.
SMALL: Final = 0.01
#: A batch that would be done, with what is due before it, only in this many times the time it has is beyond help, and
#: shares like those without a deadline: else a million jobs with a window of a minute would stop everybody else for it.
HOPELESS: Final = 2.0


class Dated(Protocol):
    """What has to be known of a batch."""

    @property
    def batch_id(self) -> int: ...
    @property
    def tenant_id(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def ready(self) -> int | None: ...


D = TypeVar("D", bound=Dated)


@dataclass(frozen=True, slots=True)
class Urgent(Generic[D]):
    """Of one class, who is not left to the shares of all."""

    #: They go first, in this order.
    first: Sequence[D] = field(default_factory=list)
    #: These share what is left, before all others of the class.
    pressing: Sequence[D] = field(default_factory=list)


def at_risk(
    contenders: Sequence[D],
    *,
    ahead: int,
    permits: int,
    now: float,
    seconds_per_permit: float | None,
) -> Urgent[D]:
    """Who goes first, and who presses; `ahead` jobs of higher classes go before all of them. A deadline is when the
    last call has to start.

    When one deadline is tight, everything that is due before it is, too: it is all in its way. Who is passed over now
    waits for `permits` to go elsewhere, so that time is taken off what is left.
    """
    pace = seconds_per_permit or 0.0
    dated = [
        (each.deadline - now, -each.priority, each.batch_id, each) for each in contenders if each.deadline is not None
    ]
    ordered: list[D] = []
    work, tight, pressing, spare = ahead, 0, 0, math.inf
    for left, _, _, each in sorted(dated, key=lambda one: one[:3]):
        needed, room = (work + (each.ready or 0)) * pace, left - permits * pace
        if left <= 0 or needed > HOPELESS * left:
            continue
        work += each.ready or 0
        ordered.append(each)
        if needed > TIGHT * room or left <= NEAR_SECONDS:
            tight = len(ordered)
        if needed > PRESSING * room:
            pressing = len(ordered)
        spare = min(spare, left - needed if needed < left else left)  # what is late anyhow hardly gets later
    if int(now) % BREATH_SECONDS == BREATH_SECONDS - 1:
        pressing = 0
    if not (tight or pressing):
        return Urgent()
    small = _small(contenders, SMALL * spare / pace) if pace else []
    return Urgent([*small, *ordered[:tight]], ordered[: max(tight, pressing)])


def _small(contenders: Sequence[D], jobs: float) -> list[D]:
    """The smallest work of each tenant in turn, so many jobs of it together. What a tenant splits counts as a whole."""
    of_tenant: Counter[int] = Counter()
    found: list[tuple[int, int, D]] = []
    known = [each for each in contenders if each.ready is not None]
    for each in sorted(known, key=lambda one: (one.ready or 0, one.batch_id)):
        of_tenant[each.tenant_id] += each.ready or 0
        found.append((of_tenant[each.tenant_id], each.batch_id, each))
    small = []
    for _, _, each in sorted(found, key=lambda one: one[:2]):
        jobs -= each.ready or 0
        if jobs < 0:
            break
        small.append(each)
    return small
