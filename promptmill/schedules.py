"""When a schedule fires: pure arithmetic over cron expressions, time zones and what has fired before.

A fire has its *nominal* time, which names it (together with the schedule, it makes a fire happen once), and the moment
at which it is carried out, which jitter may put a little later. Everything here is asked about nominal times.

Clocks that change (daylight saving), as Debian's cron does it and as most people mean it:

- A fixed time ("30 2 * * *") fires once on every day. Where the clock jumps over it in spring, it fires at the first
  moment after the jump (03:00); where the hour comes twice in autumn, it fires at the first of the two.
- Whatever has a `*` (or `*/n`) for the minute or the hour follows the time that really passes. In spring it does not
  fire in the hour that is not there; in autumn it fires in both.

    zone              the clock goes    expression      fires (wall clock, offset)
    Europe/Berlin     on at 02:00       30 2 * * *      29 March    03:00+02:00    and the next day 02:30+02:00
                                        0 * * * *       29 March    01:00+01:00, 03:00+02:00
                                        */15 * * * *    29 March    01:45+01:00, 03:00+02:00
                      back at 03:00     30 2 * * *      25 October  02:30+02:00    and the next day 02:30+01:00
                                        0 * * * *       25 October  02:00+02:00, 02:00+01:00, 03:00+01:00
    America/New_York  on at 02:00       30 2 * * *      8 March     03:00-04:00    and the next day 02:30-04:00
                      back at 02:00     30 1 * * *      1 November  01:30-04:00    and the next day 01:30-05:00
                                        0 * * * *       1 November  01:00-04:00, 01:00-05:00, 02:00-05:00
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
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
#: Without a bound of its own, a schedule that runs all its missed fires runs this many of them: the latest.
CATCH_UP: Final = 100
_MOST_CATCH_UP: Final = 10_000
_FIELDS: Final = "minute hour day-of-month month day-of-week"


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


class Action(StrEnum):
    """What to do with a fire now."""

    RUN = "run"
    SKIP = "skip"
    WAIT = "wait"


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
    #: A fire that is carried out later than this (and its jitter) was missed.
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
    if schedule.starts_at is not None and schedule.ends_at is not None and schedule.ends_at <= schedule.starts_at:
        raise UsageError("the schedule would end before it starts")
    if not 1 <= schedule.catch_up <= _MOST_CATCH_UP:
        raise UsageError(f"catch_up is {schedule.catch_up}; it is a number of fires from 1 to {_MOST_CATCH_UP:,}")
    if schedule.jitter_seconds < 0 or schedule.grace_seconds < 0:
        raise UsageError("jitter and grace are seconds, and not less than 0")
    if schedule.cron is not None and schedule.jitter_seconds >= (every := _closest(schedule, now)):
        raise UsageError(
            f"a jitter of {schedule.jitter_seconds:g} s would let fires overtake each other: "
            f"{schedule.cron!r} fires every {every:g} s; give less than that"
        )
    if next_fire(schedule, after=now - schedule.grace_seconds) is None:
        raise UsageError("the schedule would never fire: its only times lie in the past, or after its end")


def time_zone(name: str) -> ZoneInfo:
    """The zone of this name in the IANA database. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a name at all; a directory of the database ("Europe")
        raise UsageError(
            f"{name!r} is no time zone; give a name of the IANA database, such as Europe/Berlin, or UTC"
        ) from None


def expression(text: str) -> str:
    """The five fields of a cron expression, names replaced. Raises UsageError."""
    fields = NAMED.get(text.strip().lower(), text)
    count = len(fields.split())
    if fields.startswith("@"):
        raise UsageError(f"{text!r} is not known; there are {', '.join(NAMED)}")
    if count != len(_FIELDS.split()):
        seconds = "; seconds are not among them" if count == len(_FIELDS.split()) + 1 else ""
        raise UsageError(f"{text!r} has {count} fields; a cron expression has 5 ({_FIELDS}){seconds}")
    try:
        next(CronSim(fields, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise UsageError(f"{text!r} is no cron expression: {str(error).lower()} (the fields are {_FIELDS})") from None
    except StopIteration:
        raise UsageError(f"{text!r} never fires: there is no such day") from None
    return fields


def fires(schedule: Schedule, *, after: float) -> Iterator[float]:
    """Nominal times of the fires later than `after`, in order, without end unless the schedule has one."""
    after = max(after, float("-inf") if schedule.starts_at is None else _just_before(schedule.starts_at))
    ends_at = float("inf") if schedule.ends_at is None else schedule.ends_at
    if schedule.cron is None:
        if schedule.at is not None and after < schedule.at < ends_at:
            yield schedule.at
        return
    begin = datetime.fromtimestamp(after, time_zone(schedule.zone))
    # The second pass through a repeated hour would be taken for the first one: what is not later is left out.
    for moment in CronSim(expression(schedule.cron), begin):
        at = moment.timestamp()
        if at >= ends_at:
            return
        if at > after:
            after = at
            yield at


def next_fire(schedule: Schedule, *, after: float) -> float | None:
    """The first fire later than `after`."""
    return next(fires(schedule, after=after), None)


@dataclass(frozen=True, slots=True)
class Due:
    """What a look at a schedule found."""

    run: tuple[float, ...] = ()  # nominal times, the oldest first
    missed: int = 0  # fires that are left out by the policy
    #: The nominal time up to which all is decided: the next look starts here.
    decided_until: float | None = None


def due(schedule: Schedule, *, last_fire: float | None, now: float) -> Due:
    """Which fires to carry out now. `last_fire` is up to where all was decided: at first, when the schedule was made.

    The latest fire is on time within `grace_seconds` (and its own jitter) and always carried out; what is older was
    missed, and the policy decides.
    """
    begin = _first_look(schedule, now) if last_fire is None else last_fire
    passed: list[float] = []
    count = 0
    on_time: list[float] = []
    most = {Missed.SKIP: 0, Missed.ONCE: 1, Missed.ALL: schedule.catch_up}[schedule.missed]
    for at in _passed(schedule, after=begin, now=now):
        if now - carried_out_at(schedule, at) <= schedule.grace_seconds:
            on_time.append(at)
            continue
        count += 1
        passed.append(at)
        del passed[: -most or None]
    if schedule.missed is Missed.ONCE and on_time:
        passed = []  # the one that is on time stands for them
    newest = [*passed, *on_time][-1:] if count + len(on_time) else []
    decided = on_time[-1] if on_time else _last_missed(schedule, begin, now, count)
    return Due((*passed, *on_time), count - len(passed), decided if newest or count else last_fire)


def _first_look(schedule: Schedule, now: float) -> float:
    return now - schedule.grace_seconds if schedule.starts_at is None else _just_before(schedule.starts_at)


def carried_out_at(schedule: Schedule, fire: float) -> float:
    """The fire's time with its jitter: the same at every look and in every process, as it is drawn from their names."""
    if not schedule.jitter_seconds:
        return fire
    digest = hashlib.blake2b(f"{schedule.id} {fire:.3f}".encode(), digest_size=8).digest()
    return fire + schedule.jitter_seconds * (int.from_bytes(digest) / 2**64)


def overlapping(schedule: Schedule, *, previous_is_active: bool) -> Action:
    """What to do with a fire that is due, given whether the batch of the one before is still being worked on."""
    if not previous_is_active or schedule.overlap is Overlap.ALLOW:
        return Action.RUN
    return Action.SKIP if schedule.overlap is Overlap.SKIP else Action.WAIT
