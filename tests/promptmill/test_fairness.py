"""Who gets the permits: priority, then the batch with the fewest calls in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.fairness import Contender, shares

CASES = [
    ("nobody", [], 5, []),
    ("no permits", [Contender(1)], 0, []),
    ("alone", [Contender(1)], 5, [(1, 5)]),
    ("equal", [Contender(1), Contender(2)], 6, [(1, 3), (2, 3)]),
    ("the one that has none in flight first", [Contender(1, in_flight=100), Contender(2)], 10, [(2, 10)]),
    ("level, then equal", [Contender(1, in_flight=4), Contender(2)], 8, [(1, 2), (2, 6)]),
    ("priority first", [Contender(1, priority=1), Contender(2)], 3, [(1, 3)]),
]


@pytest.mark.parametrize(("contenders", "permits", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cases(contenders, permits, expected):
    assert shares(contenders, permits) == expected


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=20),
    st.integers(1, 200),
)
def test_every_permit_goes_somewhere_and_nobody_is_passed_over(in_flight, permits):
    contenders = [Contender(i, in_flight=n) for i, n in enumerate(in_flight)]
    given_to = dict(shares(contenders, permits))
    assert sum(given_to.values()) == permits
    after = {i: n + given_to.get(i, 0) for i, n in enumerate(in_flight)}
    for i in given_to:
        assert after[i] <= min(after.values()) + 1
