"""What a worker does on its own never comes to more than the limit, for all of them together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.limits import Limits
from worker.limits.gcra import Rate
from worker.limits.share import most_in_flight, opening_seconds, share_of, used_cells


@pytest.mark.parametrize(
    ("limits", "workers", "held", "share"),
    [
        (Limits(6_000, 1_000_000, 100), 4, None, Limits(1_200, 200_000, 20)),
        (Limits(6_000, 1_000_000, 100), 1, None, Limits(4_800, 800_000, 80)),
        (Limits(6, None, 256), 4, None, Limits(6 * 0.8 / 4, None, 51)),  # rates may be fractions
        (Limits(None, None, 3), 8, None, Limits(None, None, 1)),  # a slot may not
        (Limits(None, None, 100), 4, 33, Limits(None, None, 20)),  # who had more starts none until it has its share
        (Limits(None, None, 100), 4, 5, Limits(None, None, 5)),  # somebody else may have the rest
        (Limits(None, None, 100), 4, 0, Limits(None, None, 0)),
        (Limits(), 4, None, Limits()),  # what is not limited has no share
    ],
)
def test_the_share_of_one_worker(limits, workers, held, share):
    assert share_of(limits, workers, held) == share


@given(
    limit=st.integers(1, 1_000),
    held=st.lists(st.integers(0, 1_000), min_size=1, max_size=40),
)
def test_whatever_the_others_had_all_together_stay_below_the_limit(limit, held):
    total = 0
    for i, count in enumerate(held):
        held[i] = min(count, limit - total)
        total += held[i]
    assert sum(most_in_flight(limit, len(held), count) for count in held) <= limit


def test_workers_that_lose_redis_together_start_one_after_the_other():
    shared, own = Rate(60), Rate(60 * 0.8 / 4)
    waits = [opening_seconds(shared, own, 0.0, workers=4, rank=rank) - own.tolerance_seconds for rank in range(4)]
    gaps = [later - sooner for sooner, later in zip([0.0, *waits], waits, strict=False)]
    assert gaps == pytest.approx([own.interval_seconds / 4] * 4)


def test_a_debt_is_split_between_the_workers_and_comes_back_as_what_is_left_of_it():
    shared, own = Rate(1_000_000), Rate(200_000)
    ahead = 900_000 * shared.interval_seconds  # one call has just used 900,000 tokens
    opening = opening_seconds(shared, own, ahead, workers=4, rank=0)
    assert used_cells(own, opening) == pytest.approx(225_000)
    assert used_cells(own, opening - 30) == pytest.approx(225_000 - 30 / own.interval_seconds)
    assert used_cells(own, -5) == 0
