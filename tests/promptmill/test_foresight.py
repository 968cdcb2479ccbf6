"""How well the time left is foretold on simulated runs, and the table of what is said when little is known."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.foresight import (
    Foresight,
    Interval,
    LaneWork,
    Price,
    Seen,
    ceiling,
    cost,
    expected,
    seconds_per_job,
    time_left,
    tokens_to_come,
)
from promptmill.limits import Limits

JOBS, BUCKET, TIMES = 30_000, 5.0, 5


def dice_for(seed):
    return Random(seed)  # noqa: S311  # nothing secret


def run(pace, seed):
    """Jobs that end at random at a pace that changes with time: seconds of each end."""
    rng, ends, now = dice_for(seed), [], 0.0
    while len(ends) < JOBS:
        rate = TIMES * pace(now)
        if rate <= 0:
            now = math.floor(now) + 1.0
            continue
        wait = rng.expovariate(rate)
        if wait > 1.0:
            now += 1.0
            continue
        now += wait
        ends.append(now)
    return ends


def seconds_left(left, finished):
    return time_left([LaneWork(left=left, finished=finished, bucket_seconds=BUCKET)], deadline=None, now=0.0).seconds


PACES = {
    "constant": lambda _: 10.0,
    "a step down": lambda t: 20.0 if t < 75 else 8.0,
    "a step up": lambda t: 5.0 if t < 150 else 15.0,
    "slowing all the time": lambda t: max(12.0 - t / 120, 2.0),
    "growing all the time": lambda t: 6.0 + t / 120,
    "slowing to a halt by halves": lambda t: 14.0 * 0.5 ** (t / 700),
    "bursts": lambda t: 30.0 if t % 30 < 10 else 0.0,
    "bursts of another length": lambda t: 25.0 if t % 47 < 13 else 3.0,
    "waves": lambda t: 10.0 + 6.0 * math.sin(t / 11),
}


@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
def test_half_way_the_rest_is_foretold_within_fifteen_percent(pace):
    """In nine of ten runs: a pace that slows all the time cannot always be told from one that has changed."""
    close = within = 0
    for seed in range(20):
        ends = run(pace, seed)
        buckets = int(ends[JOBS // 2] / BUCKET)
        now = buckets * BUCKET
        finished = [0] * buckets
        for end in ends:
            if end < now:
                finished[int(end / BUCKET)] += 1
        foretold, took = seconds_left(JOBS - sum(finished), finished), ends[-1] - now
        close += foretold.likely == pytest.approx(took, rel=0.15)
        within += foretold.low <= took <= foretold.high
        assert foretold.likely == pytest.approx(took, rel=0.25)
    assert close >= 18
    assert within >= 15


def test_the_interval_holds_nine_of_ten_steady_runs():
    within = 0
    for seed in range(100):
        rng = dice_for(seed)
        finished = [sum(rng.random() < 0.4 for _ in range(25)) for _ in range(40)]
        need, took = 400, 0.0
        while need > 0:
            need -= sum(rng.random() < 0.4 for _ in range(25))
            took += BUCKET
        seconds = time_left(
            [LaneWork(left=400, finished=finished, bucket_seconds=BUCKET)], deadline=None, now=0.0
        ).seconds
        within += seconds.low <= took <= seconds.high
    assert within >= 85


STEADY = {"finished": (50,) * 40, "bucket_seconds": 10.0}  # 5 a second

CASES = [
    ("nothing is left", [LaneWork(left=0)], 0.0),
    ("nothing is known", [LaneWork(left=5)], None),
    ("one lane of two is not known", [LaneWork(left=5), LaneWork(left=5, **STEADY)], None),
    ("steady", [LaneWork(left=500, **STEADY)], 100.0),
    ("the slowest lane", [LaneWork(left=500, **STEADY), LaneWork(left=50, **STEADY)], 100.0),
    ("others have turns, too", [LaneWork(left=500, jobs_until_done=750.0, **STEADY)], 150.0),
    ("by its limits, before the first answer", [LaneWork(left=600, limits=Limits(60))], 600.0),
    ("by its places", [LaneWork(left=600, limits=Limits(max_in_flight=10), call_seconds=20.0)], 1_200.0),
    ("by the tighter of them",
     [LaneWork(left=600, limits=Limits(60, max_in_flight=10), call_seconds=1.0)], 600.0),
    ("never faster than its limits", [LaneWork(left=600, limits=Limits(60), **STEADY)], 600.0),
    ("silence, and a limit", [LaneWork(left=60, finished=(0,) * 9, limits=Limits(60))], 60.0),
    ("silence", [LaneWork(left=60, finished=(0,) * 9)], None),
    ("by its tokens", [LaneWork(left=600, limits=Limits(600, 6_000), tokens_each=100.0)], 600.0),
    ("limits that hold for its other lanes too",
     [LaneWork(left=500, limits=Limits(60), beside_it=100), LaneWork(left=100, limits=Limits(60), beside_it=500)],
     600.0),
    ("its own cap, below the lane's pace", [LaneWork(left=500, caps=[Limits(60)], elsewhere=100, **STEADY)], 600.0),
    ("its own cap, where nothing else is known", [LaneWork(left=600, caps=[Limits(), Limits(60)])], 600.0),
    ("nothing starts for a minute", [LaneWork(left=500, idle_seconds=60.0, **STEADY)], 160.0),
    ("the last call takes its time", [LaneWork(left=1, call_seconds=600.0, **STEADY)], 300.0),
]  # fmt: skip


@pytest.mark.parametrize(("work", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cases(work, expected):
    seconds = time_left(work, deadline=None, now=0.0).seconds
    assert (seconds and seconds.likely) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("work", "limited_by"),
    [
        (LaneWork(left=5), None),
        (LaneWork(left=5, **STEADY), "pace"),
        (LaneWork(left=5, limits=Limits(60), **STEADY), "requests_per_minute"),
        (LaneWork(left=5, limits=Limits(6_000), **STEADY), "pace"),
        (LaneWork(left=5, limits=Limits(6_000, 60), tokens_each=10.0), "tokens_per_minute"),
        (LaneWork(left=5, limits=Limits(6_000, max_in_flight=1), call_seconds=9.0), "max_in_flight"),
        (LaneWork(left=5, limits=Limits(6_000), caps=[Limits(60)], **STEADY), "batch_requests_per_minute"),
    ],
)
def test_what_keeps_it_from_being_faster(work, limited_by):
    found = expected(work)
    assert (found and found.limited_by) == limited_by


def test_what_was_seen_some_time_ago_is_told_less_surely():
    now, then = (expected(LaneWork(left=500, is_rough=rough, **STEADY)).seconds for rough in (False, True))
    assert then.likely == now.likely == pytest.approx(100.0)
    assert (then.low, then.high) == pytest.approx((50.0, 200.0))


def test_beside_others_it_is_told_less_surely():
    alone, beside = (expected(LaneWork(left=500, jobs_until_done=jobs, **STEADY)).seconds for jobs in (None, 500.0))
    assert beside.likely == alone.likely
    assert beside.high / beside.likely == pytest.approx(1.13, abs=0.02)
    assert alone.high / alone.likely < 1.09


@pytest.mark.parametrize(
    ("deadline", "holds", "late"),
    [(None, None, 0.0), (1_101.0, True, 0.0), (1_040.0, False, 60.0), (0.0, False, 1_100.0)],
)
def test_deadlines(deadline, holds, late):
    found = time_left([LaneWork(left=500, **STEADY)], deadline=deadline, now=1_000.0)
    assert (found.holds_deadline, found.late_seconds) == (holds, pytest.approx(late))


def test_nothing_is_promised_while_nothing_is_known():
    assert time_left([LaneWork(left=5)], deadline=10.0, now=0.0) == Foresight(None)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (LaneWork(left=5), None),
        (LaneWork(left=5, **STEADY), 0.2),
        (LaneWork(left=5, limits=Limits(60)), 1.0),
        (LaneWork(left=5, limits=Limits(60), caps=[Limits(1)], **STEADY), 1.0),
    ],
)
def test_how_long_the_lane_takes_for_each_job_whosever_it_is(work, seconds):
    found = seconds_per_job(work, 1_000.0)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_without_limits_there_is_no_ceiling():
    assert ceiling(Limits(max_in_flight=5)) is None
    assert ceiling(Limits(tokens_per_minute=5)) is None


@given(st.integers(1, 10**6), st.lists(st.integers(0, 500), max_size=60), st.none() | st.floats(0.1, 1e5))
def test_an_interval_is_one_whatever_was_seen(left, finished, rpm):
    seconds = time_left([LaneWork(left=left, finished=finished, limits=Limits(rpm))], deadline=9.0, now=0.0).seconds
    if seconds is not None:
        assert 0 <= seconds.low <= seconds.likely <= seconds.high < math.inf


# ---------------------------------------------------------------- tokens and money

TOKENS = [
    ("none seen", None, {"guess": 500.0}, Interval(0.0, 50_000.0, 100_000.0)),
    ("none seen, but a most", None, {"guess": 500.0, "most": 4_000.0}, Interval(0.0, 50_000.0, 400_000.0)),
    ("all alike", Seen(10_000, 800.0), {}, Interval(79_960.0, 80_000.0, 80_040.0)),
    ("one seen", Seen(1, 800.0), {}, Interval(0.0, 80_000.0, 211_600.0)),
    ("one seen, and a most", Seen(1, 800.0), {"most": 1_000.0}, Interval(0.0, 80_000.0, 100_000.0)),
]


@pytest.mark.parametrize(("seen", "more", "expected"), [c[1:] for c in TOKENS], ids=[c[0] for c in TOKENS])
def test_tokens_to_come(seen, more, expected):
    found = tokens_to_come(100, seen, **more)
    assert (found.low, found.likely, found.high) == pytest.approx((expected.low, expected.likely, expected.high))


def test_tokens_of_answers_that_vary_lie_in_the_interval():
    within = 0
    for seed in range(200):
        rng = dice_for(seed)
        lengths = [rng.lognormvariate(6, 1) for _ in range(1_000)]
        seen = lengths[:200]
        mean = sum(seen) / 200
        deviation = math.sqrt(sum((x - mean) ** 2 for x in seen) / 199)
        found = tokens_to_come(800, Seen(200, mean, deviation))
        within += found.low <= sum(lengths[200:]) <= found.high
    assert within >= 170


def test_cost():
    tokens = Interval(1e6, 2e6, 3e6)
    assert cost(tokens, Interval(0.0, 1e6, 2e6), Price(prompt=0.5, completion=2.0)) == Interval(0.5, 3.0, 5.5)
