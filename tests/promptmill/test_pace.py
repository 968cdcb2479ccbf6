"""Which part of what a lane did tells how fast it is: a table of histories."""

from dataclasses import dataclass

import pytest

from promptmill.limits import Limits
from promptmill.pace import Pace, seen

LIMITS = Limits(max_in_flight=10)
NOW = 1_000.0


@dataclass(frozen=True)
class Row:
    bucket: int
    finished: int
    calls: int
    seconds: float


def rows(*counts, first, call_seconds=1.0):
    """Buckets of ten seconds, one after the other."""
    return [Row(first + i, n, n, n * call_seconds) for i, n in enumerate(counts) if n]


def pace(history, *, busy_since=None, now=NOW):
    return seen(history, bucket_seconds=10.0, busy_since=busy_since, limits=LIMITS, now=now)


CASES = [
    ("nothing", [], None, Pace()),
    ("nothing yet", [], 990.0, Pace()),
    ("nothing for long", [], 930.0, Pace(is_silent=True)),
    ("busy: its first bucket was not full, nor is the last", rows(20, 50, 60, 50, 60, 9, first=95), 958.0,
     Pace((50, 60, 50), 10.0, 1.0)),
    ("what was before there was work", rows(1, 0, 1, 1, 20, 50, 50, 50, 50, first=91), 958.0,
     Pace((50, 50, 50), 10.0, 1.0)),
    ("a little, counted as far as it goes", rows(20, 50, first=98), 985.0, Pace((70,), 14.0, 1.0)),
    ("too soon", rows(3, first=99), 999.5, Pace(call_seconds=1.0)),
    ("a pause in the middle", rows(50, 50, 50, *[0] * 8, 50, 50, 50, 50, 50, first=83), 830.0,
     Pace((50, 50, 50, 50), 10.0, 1.0)),
    ("silence that is not long yet", rows(50, 50, 50, 50, first=92), 920.0,
     Pace((50, 50, 50, 0, 0, 0), 10.0, 1.0)),
    ("silence", rows(50, 50, 50, 50, first=89), 890.0, Pace(call_seconds=1.0, is_silent=True)),
    ("calls of half a minute: those before the first answer", rows(10, 0, 0, 10, first=95, call_seconds=30.0), 920.0,
     Pace((0, 0, 0, 10, 0, 0, 10), 10.0, 30.0)),
    ("idle, and it was busy", rows(20, 50, 60, 50, 9, first=50), None, Pace((50, 60, 50), 10.0, 1.0, is_rough=True)),
    ("idle, and nobody pressed it", rows(20, 40, 40, 40, 9, first=50), None, Pace(call_seconds=1.0)),
    ("idle, and it was busy for a moment", rows(20, 90, 9, first=50), None, Pace(call_seconds=1.0)),
    ("just begun, where others were just done", rows(9, 90, 90, 90, 90, 90, first=94), 995.0,
     Pace((90, 90, 90, 90), 10.0, 1.0)),
    ("just begun, where others were done before", rows(9, 90, 90, 90, 9, first=92), 985.0,
     Pace((90, 90, 90), 10.0, 1.0, is_rough=True)),
]  # fmt: skip


@pytest.mark.parametrize(("history", "busy_since", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cases(history, busy_since, expected):
    assert pace(history, busy_since=busy_since) == expected


def test_a_bucket_counts_when_all_of_it_must_have_been_told():
    history = rows(9, 50, 50, 50, 50, first=95)
    assert pace(history, busy_since=950.0, now=1_000.0).finished == (50, 50, 50)
    assert pace(history, busy_since=950.0, now=1_002.0).finished == (50, 50, 50, 50)


def test_an_idle_lane_that_used_its_rate_was_busy():
    history = rows(20, 50, 60, 50, 9, first=50, call_seconds=0.01)
    limits = Limits(requests_per_minute=330, max_in_flight=256)
    assert seen(history, bucket_seconds=10.0, busy_since=None, limits=limits, now=NOW).finished == (50, 60, 50)


def test_what_is_known_to_be_done_is_counted_before_it_is_told():
    history = rows(20, 50, first=98)
    terms = {"bucket_seconds": 10.0, "limits": LIMITS, "now": NOW}
    assert seen(history, busy_since=985.0, done=84, **terms) == Pace((84,), 14.0, 1.0)
    # But not what was done before the last pause, when it is told of the time since.
    assert seen(history, busy_since=100.0, done=840, **terms).finished == (70,)


def test_a_worker_that_has_just_begun_is_not_silent_and_did_not_waste_the_time_before():
    terms = {"bucket_seconds": 10.0, "limits": LIMITS, "now": NOW, "busy_since": 100.0}
    assert not seen([], working_since=970.0, **terms).is_silent
    assert seen(rows(20, 50, first=98), working_since=985.0, **terms) == Pace((70,), 14.0, 1.0)
    assert seen(rows(20, 50, first=98), working_since=995.0, **terms) == Pace((70,), 19.0, 1.0)


PAUSES = [
    ("just resumed: as before it", rows(20, 50, 50, 50, 50, 25, first=92), 1_003.0, Pace((50,) * 4, 10.0, 1.0)),
    ("and what came after it", rows(20, 50, 50, 50, 50, 25, 0, 20, 50, 50, first=92), 1_023.0,
     Pace((50,) * 6, 10.0, 1.0)),
    ("enough came after it", rows(20, 50, 50, 50, 50, 25, 0, 20, *[40] * 7, first=92), 1_073.0,
     Pace((40,) * 6, 10.0, 1.0)),
    ("little was done before it", rows(20, 25, first=96), 1_003.0, Pace((20,), 7.0, 1.0)),
    ("nothing was", rows(25, first=97), 1_003.0, Pace(call_seconds=1.0)),
    ("and nothing came after it", rows(20, 50, 50, 50, 50, 25, first=92), 1_083.0,
     Pace(call_seconds=1.0, is_silent=True)),
]  # fmt: skip


@pytest.mark.parametrize(("history", "now", "expected"), [c[1:] for c in PAUSES], ids=[c[0] for c in PAUSES])
def test_a_pause_is_cut_out(history, now, expected):
    """From 975 to 995."""
    began = history[0].bucket * 10 + 5.0
    terms = {"bucket_seconds": 10.0, "limits": LIMITS, "now": now, "busy_since": began}
    assert seen(history, pause=(975.0, 995.0), **terms) == expected


def test_what_is_known_to_be_done_is_counted_without_what_was_done_in_the_bucket_of_the_pause():
    history = rows(20, 25, 0, 0, 10, first=96)
    terms = {"bucket_seconds": 10.0, "limits": LIMITS, "now": 1_003.0, "busy_since": 965.0, "pause": (975.0, 995.0)}
    assert seen(history, done=20 + 25 + 12, **terms) == Pace((32,), 7.0, 1.0)


def test_while_it_is_paused_it_is_as_fast_as_before():
    history = rows(20, 50, 50, 50, 50, 25, first=52)
    terms = {"bucket_seconds": 10.0, "limits": LIMITS, "now": NOW, "busy_since": 525.0}
    assert seen(history, **terms).is_silent
    assert seen(history, pause=(575.0, NOW), **terms) == Pace((50, 50, 50), 10.0, 1.0, is_rough=True)


def test_a_pause_before_there_was_work_is_none():
    terms = {"bucket_seconds": 10.0, "limits": LIMITS, "now": NOW, "busy_since": 958.0}
    history = rows(20, 50, 60, 50, 60, 9, first=95)
    assert seen(history, pause=(900.0, 950.0), **terms) == seen(history, **terms)
