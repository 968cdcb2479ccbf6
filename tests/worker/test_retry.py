"""The rules as a table, and the laws behind them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.job import State
from promptmill.outcome import LANE_FAULTS, TRANSIENT, WAITS, Failure, Reason
from worker.retry import OVERLOADED_IN_A_ROW, Finish, Retry, RetryPolicy, decide, lane_pause_seconds

NOW = 1_000.0
POLICY = RetryPolicy()
FINAL = frozenset(Reason) - TRANSIENT - WAITS

reasons = st.sampled_from(list(Reason))
waits = st.none() | st.floats(0, 3600)
dice = st.floats(0, 1, exclude_max=True)
policies = st.builds(RetryPolicy, st.integers(1, 100), st.floats(0.001, 100), st.floats(0.001, 1000))


def failed(reason: Reason, retry_after: float | None = None) -> Failure:
    return Failure(reason, "x", retry_after_seconds=retry_after)


@pytest.mark.parametrize(
    ("reason", "retry_after", "attempts", "expected"),
    [
        # Transient: full jitter (here half of each bound), growing to the cap, and at the sixth it is enough.
        (Reason.SERVER_ERROR, None, 1, Retry(NOW + 0.5, counts=True)),
        (Reason.SERVER_ERROR, None, 2, Retry(NOW + 1.0, counts=True)),
        (Reason.SERVER_ERROR, None, 5, Retry(NOW + 8.0, counts=True)),
        (Reason.SERVER_ERROR, None, 6, Finish(State.FAILED)),
        (Reason.SERVER_ERROR, None, 7, Finish(State.FAILED)),
        (Reason.BODY_NOT_JSON, None, 3, Retry(NOW + 2.0, counts=True)),
        (Reason.TOTAL_TIMEOUT, None, 1, Retry(NOW + 0.5, counts=True)),
        # Retry-After is a lower bound, not the wait.
        (Reason.SERVER_ERROR, 30.0, 1, Retry(NOW + 30.0, counts=True)),
        (Reason.SERVER_ERROR, 0.1, 1, Retry(NOW + 0.5, counts=True)),
        # Waiting is not failing, however often.
        (Reason.RATE_LIMITED, 30.0, 1, Retry(NOW + 30.0, counts=False)),
        (Reason.RATE_LIMITED, 0.0, 1, Retry(NOW, counts=False)),
        (Reason.RATE_LIMITED, None, 99, Retry(NOW + 0.5, counts=False)),
        (Reason.OVERLOADED, None, 99, Retry(NOW + 0.5, counts=False)),
        (Reason.STOPPED, None, 99, Retry(NOW, counts=False)),
        # What does not mend.
        (Reason.REJECTED, None, 1, Finish(State.FAILED)),
        (Reason.REJECTED, 5.0, 1, Finish(State.FAILED)),
        (Reason.TLS_FAILED, None, 1, Finish(State.FAILED)),
        (Reason.BODY_TOO_LARGE, None, 1, Finish(State.FAILED)),
        (Reason.BAD_REQUEST, None, 1, Finish(State.FAILED)),
        (Reason.UNAUTHORIZED, None, 1, Finish(State.FAILED)),
    ],
)
def test_decide(reason, retry_after, attempts, expected):
    assert decide(failed(reason, retry_after), attempts, NOW, POLICY, lambda: 0.5) == expected


def test_the_bound_is_capped():
    policy = RetryPolicy(max_attempts=10_000)
    assert decide(failed(Reason.SERVER_ERROR), 9_999, NOW, policy, lambda: 0.5) == Retry(NOW + 30.0, counts=True)


def test_one_attempt_is_one_attempt():
    policy = RetryPolicy(max_attempts=1)
    assert decide(failed(Reason.SERVER_ERROR), 1, NOW, policy, lambda: 0.5) == Finish(State.FAILED)


@pytest.mark.parametrize("reason", sorted(LANE_FAULTS))
def test_a_halted_lane_gives_its_jobs_back(reason):
    assert decide(failed(reason), 6, NOW, POLICY, lambda: 0.5, lane_halted=True) == Retry(NOW, counts=False)


def test_a_halted_lane_excuses_nothing_else():
    assert decide(failed(Reason.REJECTED), 1, NOW, POLICY, lambda: 0.5, lane_halted=True) == Finish(State.FAILED)


@given(reasons, waits, st.integers(1, 10_000), dice, policies, st.booleans())
def test_the_laws_of_decide(reason, retry_after, attempts, die, policy, halted):
    decision = decide(failed(reason, retry_after), attempts, NOW, policy, lambda: die, lane_halted=halted)
    if isinstance(decision, Finish):
        assert decision.state is State.FAILED
        assert reason in FINAL or (reason in TRANSIENT and attempts >= policy.max_attempts)
        return
    assert decision.not_before >= NOW
    assert decision.counts == (reason in TRANSIENT)
    assert decision.not_before <= NOW + max(policy.cap_seconds, policy.base_seconds, retry_after or 0)
    if reason in TRANSIENT:
        assert attempts < policy.max_attempts
    if retry_after is not None and reason in TRANSIENT | {Reason.RATE_LIMITED, Reason.OVERLOADED}:
        assert decision.not_before >= NOW + retry_after


@given(st.sampled_from(sorted(TRANSIENT)), st.integers(1, 5_000), dice, policies)
def test_no_later_attempt_waits_less(reason, attempts, die, policy):
    policy = RetryPolicy(20_000, policy.base_seconds, policy.cap_seconds)
    first = decide(failed(reason), attempts, NOW, policy, lambda: die)
    later = decide(failed(reason), attempts + 1, NOW, policy, lambda: die)
    assert isinstance(first, Retry)
    assert isinstance(later, Retry)
    assert first.not_before <= later.not_before


@pytest.mark.parametrize(
    ("reason", "retry_after", "in_a_row", "seconds"),
    [
        (Reason.RATE_LIMITED, 12.0, 1, 12.0),
        (Reason.RATE_LIMITED, 0.0, 9, 0.0),
        (Reason.RATE_LIMITED, None, 1, 0.25),
        (Reason.RATE_LIMITED, None, 2, 0.5),
        (Reason.RATE_LIMITED, None, 5, 4.0),
        (Reason.RATE_LIMITED, None, 8, 30.0),
        (Reason.RATE_LIMITED, None, 100_000, 30.0),
        (Reason.OVERLOADED, 12.0, 1, 12.0),
        (Reason.OVERLOADED, None, 1, 0.0),
        (Reason.OVERLOADED, None, OVERLOADED_IN_A_ROW - 1, 0.0),
        (Reason.OVERLOADED, None, OVERLOADED_IN_A_ROW, 0.25),
        (Reason.OVERLOADED, None, OVERLOADED_IN_A_ROW + 2, 1.0),
        (Reason.OVERLOADED, None, 100_000, 30.0),
        (Reason.SERVER_ERROR, 12.0, 3, 0.0),
        (Reason.STOPPED, None, 3, 0.0),
    ],
)
def test_the_pause_of_a_lane(reason, retry_after, in_a_row, seconds):
    assert lane_pause_seconds(failed(reason, retry_after), in_a_row, lambda: 0.5) == seconds


@given(reasons, waits, st.integers(0, 10_000), dice)
def test_the_laws_of_the_pause(reason, retry_after, in_a_row, die):
    failure = failed(reason, retry_after)
    pause = lane_pause_seconds(failure, in_a_row, lambda: die)
    assert 0 <= pause <= max(60.0, retry_after or 0)
    assert pause == 0 or reason in {Reason.RATE_LIMITED, Reason.OVERLOADED}
    assert lane_pause_seconds(failure, in_a_row + 1, lambda: die) >= pause
