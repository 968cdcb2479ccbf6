"""When a schedule fires: pure arithmetic over cron expressions, time zones and what has fired before.

A fire has its *nominal* time, which names it (together with the schedule, it makes a fire happen once), and the moment
at which it is carried out, which jitter may put a little later. Everything here is asked about nominal times.

What clocks do that change (daylight saving) stands in `cron`.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice, pairwise, takewhile
from typing import Final
from zoneinfo import ZoneInfo

from promptmill.cron import expression, moments
from promptmill.errors import UsageError

#: Without a bound of its own, a schedule that runs all its missed fires runs this many of them: the latest.
CATCH_UP: Final = 100
_MOST_CATCH_UP: Final = 10_000
#: How many fires are looked at to see how close they come to each other.
_LOOK_AHEAD: Final = 200
#: Nobody looks so often that less could be kept: beat alone asks every 5 s.
LEAST_GRACE_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = {"jitter_seconds": 366 * 86_400.0, "grace_seconds": 7 * 86_400.0}
_FIRST_SPAN_SECONDS: Final = 86_400.0
#: The end of the year 9998: every zone can still say what time that is.
_LATEST: Final = 253_370_764_799.0


class Missed(StrEnum):
    """What becomes of fires whose time passed while nobody was there to carry them out."""

    #: They are left out.
    SKIP = "skip"
    #: The latest is carried out, for all of them.
    ONCE = "once"
    #: Each is carried out, the oldest first; of more than `catch_up`, the latest so many.
    ALL = "all"


class Overlap(StrEnum):
    """What becomes of a fire while the batch of the one before is not finished."""

    #: It is carried out beside it.
    ALLOW = "allow"
    #: It is left out.
    SKIP = "skip"
    #: It is carried out when the one before is finished.
    QUEUE = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When to fire: `cron` in `zone`, or once at `at`. Times are unix seconds."""

    id: str
    cron: str | None = None
    at: float | None = None
    zone: str = "UTC"
    starts_at: float | None = None  # the first moment at which it may fire
    ends_at: float | None = None  # and the first at which it may not any more
    missed: Missed = Missed.ONCE
    catch_up: int = CATCH_UP
    #: A fire that is carried out later than this (and its jitter) was missed. Less than 10 s counts as 10 s.
    grace_seconds: float = 60.0
    overlap: Overlap = Overlap.ALLOW
    jitter_seconds: float = 0.0


def check(schedule: Schedule, *, now: float) -> None:
    """Raise UsageError, with what to change, for a schedule that cannot be kept or would never fire."""
    if (schedule.cron is None) == (schedule.at is None):
        raise UsageError('a schedule has either "cron" (an expression) or "at" (one time)')
    time_zone(schedule.zone)
    if schedule.cron is not None:
        expression(schedule.cron)
    for name in ("at", "starts_at", "ends_at"):
        moment = getattr(schedule, name)
        if moment is not None and not 0 <= moment <= _LATEST:
            raise UsageError(f"{name} is {moment:g}; times are unix seconds")
    if schedule.starts_at is not None and schedule.ends_at is not None and schedule.ends_at <= schedule.starts_at:
        raise UsageError("ends_at is not after starts_at: the schedule would end before it starts")
    _check_numbers(schedule)
    jitters = schedule.cron is not None and schedule.jitter_seconds > 0
    if jitters and schedule.jitter_seconds >= (every := _closest(schedule, now)):
        raise UsageError(
            f"jitter_seconds is {schedule.jitter_seconds:g}, which would let fires overtake each other: "
            f"{schedule.cron!r} fires every {every:g} s; give less than that"
        )
    # One time may just have passed; of a cron expression, what has passed is over.
    if next_fire(schedule, after=now - schedule.grace_seconds if schedule.cron is None else now) is None:
        raise UsageError("the schedule would never fire: its times lie in the past, or outside its start and end")


def _check_numbers(schedule: Schedule) -> None:
    if not 1 <= schedule.catch_up <= _MOST_CATCH_UP:
        raise UsageError(f"catch_up is {schedule.catch_up}; it is a number of fires from 1 to {_MOST_CATCH_UP:,}")
    for name, most in _LONGEST_SECONDS.items():
        value = getattr(schedule, name)
        if not 0 <= value <= most:
            raise UsageError(f"{name} is {value:g}; it is not less than 0, and {most:,.0f} at most")


def time_zone(name: str) -> ZoneInfo:
    """The zone of this name in the IANA database. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a name at all; a directory of the database ("Europe")
        raise UsageError(
            f"{name!r} is no time zone; give a name of the IANA database, such as Europe/Berlin, or UTC"
        ) from None


def moment(text: str, zone: str) -> float:
    """Unix seconds of an ISO 8601 time; without an offset it is what a clock in `zone` shows (of two such moments the
    first). Raises UsageError."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text[:40]!r} is no time; write 2026-12-01T02:00, or with an offset 2026-12-01T02:00+01:00"
        ) from None
    return (parsed.replace(tzinfo=time_zone(zone)) if parsed.tzinfo is None else parsed).timestamp()


def fires(schedule: Schedule, *, after: float) -> Iterator[float]:
    """Nominal times of the fires later than `after`, in order, without end unless the schedule has one."""
    if schedule.starts_at is not None:
        after = max(after, math.nextafter(schedule.starts_at, -math.inf))
    ends_at = math.inf if schedule.ends_at is None else schedule.ends_at
    if schedule.cron is None:
        if schedule.at is not None and after < schedule.at < ends_at:
            yield schedule.at
        return
    yield from takewhile(lambda at: at < ends_at, moments(schedule.cron, time_zone(schedule.zone), after=after))


def next_fire(schedule: Schedule, *, after: float) -> float | None:
    """The first fire later than `after`."""
    return next(fires(schedule, after=after), None)


def carried_out_at(schedule: Schedule, fire: float) -> float:
    """The fire's time with its jitter: the same at every look and in every process, as it is drawn from their names."""
    if not schedule.jitter_seconds:
        return fire
    digest = hashlib.blake2b(f"{schedule.id} {fire:.3f}".encode(), digest_size=8).digest()
    return fire + schedule.jitter_seconds * (int.from_bytes(digest, "big") / 2**64)


def first_decided(schedule: Schedule, *, now: float) -> float:
    """Up to where all is decided for a schedule that is made now: one time may be "now", a past minute is over."""
    return now if schedule.at is None else math.nextafter(schedule.at, -math.inf)


@dataclass(frozen=True, slots=True)
class Due:
    """What a look at a schedule found."""

    run: tuple[float, ...]  # nominal times, the oldest first
    left_out: int  # fires that the policy leaves out; of very many, at least so many
    last_left_out: float | None  # the nominal time of the last of them
    #: The nominal time up to which all is decided now: the next look starts from here.
    decided_until: float


def due(schedule: Schedule, *, last_fire: float, now: float) -> Due:
    """Which fires to carry out now. `last_fire` is the `decided_until` of the last look.

    What is at most `grace_seconds` late is on time, and carried out. What is older was missed, and the policy decides:
    `skip` leaves it out, `once` carries out the latest unless one that is on time stands for it, `all` carries out the
    latest `catch_up`. More than `catch_up` are never carried out at once, on time or not.
    """
    most = schedule.catch_up if schedule.missed is Missed.ALL else 1
    passed = _latest_passed(schedule, after=last_fire, now=now, at_least=most)
    if not passed:
        return Due((), 0, None, last_fire)
    oldest = now - max(schedule.grace_seconds, LEAST_GRACE_SECONDS)
    on_time = [at for at in passed if carried_out_at(schedule, at) >= oldest][-schedule.catch_up :]
    run = on_time
    if schedule.missed is Missed.ALL or (schedule.missed is Missed.ONCE and not on_time):
        run = passed[-max(most, len(on_time)) :]
    left_out = passed[: len(passed) - len(run)]  # what runs is always the latest ones
    return Due(tuple(run), len(left_out), left_out[-1] if left_out else None, passed[-1])


def _latest_passed(schedule: Schedule, *, after: float, now: float, at_least: int) -> list[float]:
    """Fires that should have been carried out by now: all, or of very many at least so many and those within grace.

    A schedule for every minute that nobody looked at for a year is looked at from its end, in growing steps.
    """
    span = max(_FIRST_SPAN_SECONDS, 2 * (schedule.grace_seconds + schedule.jitter_seconds))
    while True:
        begin = max(after, now - span)
        within = takewhile(lambda at: carried_out_at(schedule, at) <= now, fires(schedule, after=begin))
        passed = list(within)
        if begin == after or len(passed) > at_least:
            return passed
        span *= 4


class Action(StrEnum):
    """What to do with a fire now."""

    RUN = "run"
    SKIP = "skip"
    WAIT = "wait"


def overlapping(schedule: Schedule, *, previous_is_active: bool, waiting: int = 0) -> Action:
    """What to do with a fire that is due, given whether the batch of the one before is still being worked on.

    `waiting` fires of the schedule wait already; no more than `catch_up` ever do.
    """
    if schedule.overlap is Overlap.ALLOW or not (waiting or previous_is_active):
        return Action.RUN
    return Action.WAIT if schedule.overlap is Overlap.QUEUE and waiting < schedule.catch_up else Action.SKIP


def _closest(schedule: Schedule, now: float) -> float:
    """The shortest time between two of the next fires."""
    some = islice(fires(schedule, after=now), _LOOK_AHEAD)
    return min((later - earlier for earlier, later in pairwise(some)), default=math.inf)
