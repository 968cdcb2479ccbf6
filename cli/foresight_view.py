"""What is to be expected, in words for people: how long, until when, and whether in time."""

import math
import time
from typing import Final

from promptmill.foresight import Interval
from promptmill.outlook import Outlook, Wait

#: The day is told beside the time of what is further away.
_SAME_DAY_SECONDS: Final = 20 * 3_600.0
#: Smaller sums are told with two figures.
_WHOLE_CENTS: Final = 0.1

#: What is in its way, and what makes it go on.
_WAITS: Final = {
    Wait.READING: ("its lines are being checked", ""),
    Wait.PAUSED: ("paused", "when it is resumed"),
    Wait.OPEN: ("nothing is left to do until jobs are added or it is sealed", ""),
    Wait.HALTED: ("a lane is halted", "when that is mended"),
    Wait.CANCELLING: ("it is being cancelled", ""),
    Wait.NO_WORKER: ("no worker is at work yet", "once one is"),
    Wait.NOT_SERVED: ("no worker serves its upstream (see promptmill doctor)", "once one does"),
    Wait.NO_ANSWERS: ("nothing has ended for a long time", "at the pace before"),
    Wait.UNKNOWN: ("how long it takes cannot be told yet", ""),
}


def sentence(outlook: Outlook) -> str:
    """About 12 min left (10 to 15), finishes 14:05, 2 h before its deadline."""
    seconds = outlook.work.seconds
    if outlook.reason in _WAITS:
        what, then = _WAITS[outlook.reason]
        return what if seconds is None or not then else f"{what}; about {duration(seconds.likely)} {then}"
    if seconds is None:
        return _WAITS[Wait.UNKNOWN][0]
    words = [f"about {duration(seconds.likely)} left ({span(seconds)})", f"finishes {moment(outlook, seconds.likely)}"]
    if outlook.deadline is not None:
        words.append(in_time(outlook.deadline - outlook.at - seconds.likely))
    return ", ".join(words)


def short(outlook: Outlook, *, now: float) -> str:
    """The same where there is little room: 12 min left, would be 40 min late."""
    seconds = seconds_left(outlook, now=now)
    if seconds is None:
        return "? left"
    words = f"{duration(seconds)} left"
    late = outlook.foresight.late_seconds
    return f"{words}, would be {duration(late)} late" if late else words


def seconds_left(outlook: Outlook, *, now: float) -> float | None:
    """How long it still likely takes, as of now; None while nothing can be told."""
    seconds = outlook.foresight.seconds
    return None if seconds is None else max(0.0, seconds.likely - (now - outlook.at))


def in_time(spare_seconds: float) -> str:
    """Whether it is, and by how much."""
    if spare_seconds >= 0:
        return f"{duration(spare_seconds)} before its deadline"
    return f"would be {duration(-spare_seconds)} late"


def moment(outlook: Outlook, in_seconds: float) -> str:
    """The local time then."""
    form = "%H:%M" if in_seconds < _SAME_DAY_SECONDS else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(outlook.at + in_seconds))


def span(seconds: Interval) -> str:
    """From the shortest to the longest.

    >>> span(Interval(600.0, 720.0, 900.0)), span(Interval(50.0, 60.0, 90.0))
    ('10 to 15 min', '50 s to 2 min')
    """
    low, high = duration(seconds.low), duration(seconds.high)
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") and high.count(" ") == 1 else f"{low} to {high}"


def duration(seconds: float) -> str:
    """As exactly as a guess deserves.

    >>> [duration(seconds) for seconds in (0.3, 44.6, 119.0, 4_000.0, 7_200.0, 100_000.0)]
    ['1 s', '45 s', '2 min', '1 h 7 min', '2 h', '1 d 4 h']
    """
    if seconds < 90:  # noqa: PLR2004 - seconds
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:  # noqa: PLR2004 - minutes
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:  # noqa: PLR2004 - hours
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3_600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def amount(interval: Interval, currency: str) -> str:
    """Money.

    >>> amount(Interval(0.4, 1.2, 12.5), "USD"), amount(Interval(0.0, 0.00421, 0.009), "EUR")
    ('1.20 USD (0.40 to 12.50)', '0.0042 EUR (0.00 to 0.0090)')
    """
    low, likely, high = (money(number) for number in (interval.low, interval.likely, interval.high))
    return f"{likely} {currency} ({low} to {high})"


def money(sum_: float) -> str:
    """With so many places that something is seen.

    >>> money(1234.5), money(0.5), money(0.0123), money(0.0)
    ('1,234.50', '0.50', '0.012', '0.00')
    """
    if sum_ >= _WHOLE_CENTS or sum_ == 0:
        return f"{sum_:,.2f}"
    return f"{sum_:.{1 - math.floor(math.log10(sum_))}f}"
