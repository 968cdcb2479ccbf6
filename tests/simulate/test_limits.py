"""The laws of the limits, under any arrivals: never more than allowed, and what may pass does pass when it was said."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.simulate.limits import Limit, SlidingWindow, TokenBucket

GAPS_AND_COSTS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), min_size=1, max_size=80)


def passed(limit: Limit, arrivals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (time, cost) that got through, of arrivals given as (gap, cost)."""
    now, through = 100.0, []
    for gap, cost in arrivals:
        now += gap
        if limit.seconds_until(cost, now) == 0:
            limit.take(cost, now)
            through.append((now, cost))
    return through


@given(GAPS_AND_COSTS, st.integers(1, 600), st.floats(0, 5))
def test_a_bucket_never_lets_more_through_than_capacity_and_rate(arrivals, per_minute, burst_seconds):
    bucket = TokenBucket(per_minute, burst_seconds, 100.0)
    through = passed(bucket, arrivals)
    for first, (since, _) in enumerate(through):
        total = 0.0
        for until, cost in through[first:]:
            # A cost above the capacity passes from a full bucket and is paid back: only the last one can overdraw.
            overdraft = max(0.0, cost - bucket.capacity)
            total += cost
            assert total <= bucket.capacity + (until - since) * per_minute / 60 + overdraft + 1e-6


@given(GAPS_AND_COSTS, st.integers(40, 600))
def test_a_window_never_lets_more_through_in_any_minute(arrivals, per_minute):
    through = passed(SlidingWindow(per_minute), arrivals)
    for since, _ in through:
        assert sum(cost for at, cost in through if since <= at < since + 60) <= per_minute


@given(GAPS_AND_COSTS, st.integers(1, 600), st.booleans())
def test_what_waits_as_long_as_it_was_told_passes(arrivals, per_minute, strict):
    limit: Limit = SlidingWindow(per_minute) if strict else TokenBucket(per_minute, 1.0, 100.0)
    now = 100.0
    for gap, cost in arrivals:
        now += gap
        wait = limit.seconds_until(cost, now)
        if wait > 0:
            assert limit.seconds_until(cost, now + wait / 2 - 1e-6) > 0
            now += wait + 1e-6
        assert limit.seconds_until(cost, now) == 0
        limit.take(cost, now)


@pytest.mark.parametrize("limit", [TokenBucket(60, 1.0, 0.0), SlidingWindow(60)])
def test_asking_takes_nothing(limit):
    for _ in range(1000):
        assert limit.seconds_until(1, 5.0) == 0
    assert limit.seconds_until_full(5.0) == 0


def test_a_bucket_starts_with_a_seconds_worth_and_no_less_than_one():
    assert TokenBucket(600, 1.0, 0.0).remaining(0) == 10
    assert TokenBucket(600, 6.0, 0.0).remaining(0) == 60
    assert TokenBucket(6, 1.0, 0.0).remaining(0) == 1


def test_a_window_forgets_after_a_minute():
    window = SlidingWindow(2)
    window.take(1, 0.0)
    window.take(1, 30.0)
    assert window.seconds_until(1, 40.0) == 20.0
    assert window.remaining(60.0) == 1
    assert window.seconds_until_full(60.0) == 30.0


def test_a_clock_that_steps_back_gives_nothing_away():
    bucket = TokenBucket(60, 1.0, 100.0)
    bucket.take(1, 100.0)
    assert bucket.seconds_until(1, 50.0) == 1.0
    bucket.take(0, 50.0)
    assert bucket.seconds_until(1, 100.5) == pytest.approx(0.5)
