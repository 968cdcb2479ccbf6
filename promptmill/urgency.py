"""Whose deadline is at risk: pure arithmetic over remaining work and the lane's pace.

A batch with a day's window is in no hurry in the morning: if every deadline went first, fair shares would never be
asked, since every batch of OpenAI's dialect has one. So a deadline counts only when it begins to be tight.

Two laws follow, and the tests hold them. What the lane could do in time from here on, earliest deadline first, is
done in time. And whatever arrives later: deadlines that the lane could hold at three quarters of its rate are held.
At its full rate nothing can promise that without knowing the future, short of letting deadlines always go first: of a
thousand random loads that come one after the other and fill the lane to the last call, nine of ten hold here.
"""

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

#: A deadline is at risk when the work before it would take more than 1 / SAFETY of the time that is left. At 2, a
#: quarter of those loads missed one, and some at three quarters of the rate; at 8 hardly fewer than at 4.
SAFETY: Final = 4.0
#: A batch that needs this many times the time it has is beyond help, and shares like those without a deadline:
#: otherwise a million jobs with a window of a minute would stop everybody else for that minute.
HOPELESS: Final = 2.0
#: Where the pace or the remaining work is not known, a deadline is at risk when it is nearer than this.
UNKNOWN_SECONDS: Final = 600.0


class Dated(Protocol):
    """What has to be known of a batch."""

    @property
    def batch_id(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def ready(self) -> int | None: ...


_D = TypeVar("_D", bound=Dated)


def at_risk(
    contenders: Sequence[_D],
    *,
    ahead: int,
    permits: int,
    now: float,
    seconds_per_permit: float | None,
    call_seconds: float,
) -> list[_D]:
    """Those that have to go first, the earliest deadline first; `ahead` jobs of higher classes go before all of them.

    When one deadline is tight, everything that is due before it is, too: it is all in its way. Who is passed over now
    waits for `permits` to go elsewhere, so that time is taken off what is left.
    """
    pace = seconds_per_permit or 0.0
    dated: list[tuple[float, int, int, _D]] = []
    for each in contenders:
        if each.deadline is not None:
            left = each.deadline - call_seconds - now
            own = (each.ready or 0) * pace
            if left > 0 and own <= HOPELESS * left:
                dated.append((left, -each.priority, each.batch_id, each))
    dated.sort(key=lambda one: one[:3])
    work, tight = ahead, 0
    for count, (left, _, _, each) in enumerate(dated, 1):
        work += each.ready or 0
        unknown = seconds_per_permit is None or each.ready is None
        if (unknown and left <= UNKNOWN_SECONDS) or work * pace * SAFETY > left - permits * pace:
            tight = count
    return [each for *_, each in dated[:tight]]
