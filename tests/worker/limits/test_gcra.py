"""The rate limit's law: in any window of a minute no more starts than is allowed, and nearly all of it is used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.limits import gcra
from worker.limits.gcra import Rate


def greedy(rate: Rate, asks: list[float]) -> list[float]:
    """The times at which calls start when everything that is available is taken at each of these moments."""
    tat, started = 0.0, []
    for now in asks:
        count = gcra.available(rate, tat, now)
        if count:
            tat = gcra.spend(rate, tat, now, count)
            started += [now] * count
    return started


def most_in_a_window(times: list[float], seconds: float) -> int:
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(
    limit=st.sampled_from([1, 2, 7, 60, 100, 600, 6_000, 100_000]),
    steps=st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=60),
)
def test_no_window_of_a_minute_holds_more_than_the_limit(limit, steps):
    now, asks = 1_000.0, []
    for step in steps:
        now += step
        asks.append(now)
    assert most_in_a_window(greedy(Rate(limit), asks), 60.0) <= limit


@pytest.mark.parametrize("limit", [60, 600, 6_000, 60_000])
def test_a_busy_lane_uses_nearly_all_of_it(limit):
    asks = [1_000 + i * 0.02 for i in range(50 * 300)]
    started = greedy(Rate(limit), asks)
    assert len(started) / 5 >= 0.99 * limit


def test_a_pause_shorter_than_the_burst_costs_nothing():
    rate = Rate(6_000)
    steady = greedy(rate, [i * 0.01 for i in range(3_000)])
    stalled = greedy(rate, [i * 0.01 for i in range(3_000) if not 1_000 < i < 1_025])
    assert len(steady) - len(stalled) <= 1


def test_waiting_as_told_is_enough_and_not_too_much():
    rate = Rate(120)
    tat = gcra.spend(rate, 0.0, 100.0, 1)
    wait = gcra.wait_seconds(rate, tat, 100.0)
    assert gcra.available(rate, tat, 100.0) == 0
    assert gcra.available(rate, tat, 100.0 + wait) == 1
    assert gcra.available(rate, tat, 100.0 + wait * 0.98) == 0


def test_what_costs_more_than_the_burst_passes_alone_and_leaves_a_debt():
    rate = Rate(1_000_000)
    assert gcra.available(rate, 0.0, 50.0, cost=900_000) == 1
    tat = gcra.spend(rate, 0.0, 50.0, 900_000)
    assert gcra.available(rate, tat, 60.0, cost=10) == 0
    assert gcra.available(rate, tat, 50.0 + 55, cost=10) > 0


@given(st.floats(1, 1e6), st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_refund_never_leaves_more_than_a_full_burst(limit, spent, refunded):
    rate, now = Rate(limit), 1_000.0
    tat = gcra.spend(rate, gcra.spend(rate, 0.0, now, spent), now, -refunded)
    assert gcra.available(rate, tat, now) <= int(rate.burst + 0.02)  # clocks are exact to a microsecond


@pytest.mark.parametrize("limit", [1e-300, 1e-17, 0.5])
def test_the_smallest_limit_is_a_limit(limit):
    rate = Rate(limit)
    tat = gcra.spend(rate, 0.0, 1_000.0, 1)
    assert gcra.available(rate, tat, 1_000.0) == 0
    assert tat - 1_000.0 == pytest.approx(60 / limit)
