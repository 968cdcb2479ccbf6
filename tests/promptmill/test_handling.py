"""What may be asked of a batch, and what makes no sense; the same words at every door."""

import pytest

from promptmill import handling
from promptmill.errors import UsageError
from promptmill.handling import Handling


@pytest.mark.parametrize(
    ("window", "not_before", "closes"),
    [("90m", None, 5_500.0), ("24h", 10.0, 86_500.0), ("1d", 1_000.0, 87_400.0), ("background", 5.0, None)],
)
def test_a_window_opens_when_the_batch_is_made_or_may_start(window, not_before, closes):
    assert handling.deadline(window, made_at=100.0, not_before=not_before) == closes


@pytest.mark.parametrize("window", ["", "24", "0h", "-1h", "24 h", "1w", "366d", "٣h", "9" * 30 + "s"])
def test_what_is_no_window(window):
    with pytest.raises(UsageError, match="completion_window must be like"):
        handling.window_seconds(window)


@pytest.mark.parametrize(
    ("value", "number"),
    [("interactive", 2_000), ("high", 1_000), ("normal", 0), ("background", -1_999), ("-7", -7), (2_999, 2_999)],
)
def test_priorities_have_names_and_the_highest_is_the_gateways(value, number):
    assert handling.priority_number(value) == number


@pytest.mark.parametrize("value", ["urgent", "", "1.5", 3_000, -2_000, "9" * 5_000])
def test_what_is_no_priority(value):
    with pytest.raises(UsageError, match="priority must"):
        handling.priority_number(value)


@pytest.mark.parametrize(
    "wrong",
    [{"weight": 0}, {"weight": 5e-324}, {"weight": 1_001}, {"weight": float("nan")}, {"max_in_flight": 0},
     {"max_in_flight": 1_000_001}, {"requests_per_minute": 1e-17}, {"tokens_per_minute": 1e-17},
    {"requests_per_minute": -1}, {"tokens_per_minute": float("inf")}, {"budget_tokens": 10**16}, {"budget_cost": 0},
     {"canary": 0}, {"canary_percent": -1}, {"canary_percent": 100.5}],
)  # fmt: skip
def test_what_makes_no_sense_is_named_first(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^{name} must"):
        handling.check(Handling(**wrong))


def test_the_least_and_the_most_are_fine():
    handling.check(Handling())
    handling.check(Handling(weight=0.001, max_in_flight=1, canary=1, canary_percent=0, budget_tokens=10**15))
