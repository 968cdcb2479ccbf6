"""Cron expressions on clocks that change: at which moments a zone's clock shows what an expression says.

As Debian's cron does it and as most people mean it:

- A fixed time ("30 2 * * *") comes once on every day. Where the clock jumps over it in spring, it comes at the first
  moment after the jump (03:00); where the hour comes twice in autumn, at the first of the two.
- Whatever has a `*` (or `*/n`) for the minute or the hour follows the time that really passes. In spring it does not
  come in the hour that is not there; in autumn it comes in both.

    zone                 the clock goes     expression       moments (wall clock, offset)
    Europe/Berlin        on at 02:00        30 2 * * *       29 March    03:00+02:00    and the next day 02:30+02:00
                                            0 * * * *        29 March    01:00+01:00, 03:00+02:00
                                            */15 * * * *     29 March    01:45+01:00, 03:00+02:00
                         back at 03:00      30 2 * * *       25 October  02:30+02:00    and the next day 02:30+01:00
                                            0 * * * *        25 October  02:00+02:00, 02:00+01:00, 03:00+01:00
    America/New_York     on at 02:00        30 2 * * *       8 March     03:00-04:00    and the next day 02:30-04:00
                         back at 02:00      30 1 * * *       1 November  01:30-04:00    and the next day 01:30-05:00
                                            0 * * * *        1 November  01:00-04:00, 01:00-05:00, 02:00-05:00
    Australia/Lord_Howe  on at 02:00, 30 m  */10 2 * * *     4 October   02:30+11:00, 02:40+11:00, 02:50+11:00
                         back at 02:00      */15 1 * * *     5 April     01:30+11:00, 01:45+11:00, 01:30+10:30, …

The library is asked for what clocks show, without a zone, and the moments are found here: asked with one, it counts in
whole hours and loses times where a clock changes by half an hour.
"""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from promptmill.errors import UsageError

#: What may stand for an expression.
NAMED: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS: Final = "minute hour day-of-month month day-of-week"
_LONGEST: Final = 256  # characters
#: No clock goes back by more at once.
_MOST_BACK_SECONDS: Final = 3 * 3_600


def expression(text: str) -> str:
    """The five fields of a cron expression, names replaced. Raises UsageError."""
    if len(text) > _LONGEST:
        raise UsageError(f"the cron expression has {len(text):,} characters; {_LONGEST} are the most")
    fields = NAMED.get(text.strip().lower(), text)
    count = len(fields.split())
    if fields.startswith("@"):
        raise UsageError(f"{text!r} is not known; there are {', '.join(NAMED)}")
    if count != len(_FIELDS.split()):
        seconds = "; seconds are not among them" if count == len(_FIELDS.split()) + 1 else ""
        raise UsageError(f"{text!r} has {count} fields; a cron expression has 5 ({_FIELDS}){seconds}")
    try:
        next(_shown(fields, datetime(2000, 1, 1)))  # noqa: DTZ001 - what a clock shows
    except CronSimError as error:
        raise UsageError(f"{text!r} is no cron expression: {str(error).lower()} (the fields are {_FIELDS})") from None
    except StopIteration:
        raise UsageError(f"{text!r} never fires: there is no such day") from None
    return fields


def moments(text: str, zone: ZoneInfo, *, after: float) -> Iterator[float]:
    """Unix seconds at which the zone's clock shows what the expression says: those later than `after`, in order.

    Ends where the calendar does, with the year 9999. Raises UsageError.
    """
    fields = expression(text)
    follows_time = any(field.startswith("*") for field in fields.split()[:2])
    again: list[float] = []  # of an hour that comes twice, what its second pass is to bring
    for shown in _shown(fields, _begin(zone, after)):
        first, second = (shown.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
        if first > second:  # the clock jumps over it
            if follows_time:
                continue
            first = _jump(zone, second, first)
        while again and again[0] < first:
            if (at := again.pop(0)) > after:
                yield at
        if first > after:  # of several times in a jump the first stands for all
            after = first
            yield first
        if first < second and follows_time:
            again.append(second)


def _begin(zone: ZoneInfo, after: float) -> datetime:
    """What the clock shows at that moment; before it goes back, as much earlier as it will go back."""
    earlier, later = (datetime.fromtimestamp(math.ceil(after) - 1 + s, zone) for s in (0, _MOST_BACK_SECONDS))
    shown = earlier.replace(tzinfo=None)
    goes_back = (later.utcoffset() or timedelta()) < (earlier.utcoffset() or timedelta())
    return shown - timedelta(seconds=_MOST_BACK_SECONDS) if goes_back else shown


def _shown(fields: str, begin: datetime) -> Iterator[datetime]:
    """Wall-clock times, without a zone."""
    try:
        yield from CronSim(fields, begin)
    except OverflowError:
        return


def _jump(zone: ZoneInfo, before: float, after: float) -> float:
    """The first moment after the clock's jump, which lies between these two."""
    low, high = math.floor(before), math.ceil(after)
    offset = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return float(high)
