"""A lane starts small, opens when it is good, and halts when it is not: verdict by verdict."""

import pytest

from promptmill.outcome import Answer, Failure, Reason
from worker.probe import HANDFUL, KEY_FAULTS, MODEL_FAULTS, Probe, key_probe, model_probe

GOOD = Answer(200, "application/json", b"{}")


def failure(reason: Reason) -> Failure:
    return Failure(reason, reason.value)


def end(probe: Probe, call: str, outcome):
    probe.left()
    return probe.verdict(call, outcome)


def test_a_new_lane_may_start_a_handful():
    probe = model_probe()
    assert probe.room(0) == HANDFUL
    probe.started(HANDFUL, 0)
    assert probe.room(1) == 0


def test_one_success_opens_it():
    probe = model_probe()
    probe.started(HANDFUL, 0)
    end(probe, "a", GOOD)
    assert probe.room(0.1) is None


def test_three_seconds_without_a_failure_open_it_because_models_may_think_for_minutes():
    probe = model_probe()
    probe.started(HANDFUL, 0)
    assert probe.room(2.9) == 0
    assert probe.opens_in(2.0) == pytest.approx(1.0)
    assert probe.room(3.0) is None


def test_a_failure_keeps_it_small_until_something_succeeds():
    probe = model_probe()
    probe.started(HANDFUL, 0)
    end(probe, "a", failure(Reason.SERVER_ERROR))
    assert probe.room(60) == 1
    end(probe, "b", GOOD)
    assert probe.room(60) is None


@pytest.mark.parametrize("reason", sorted(KEY_FAULTS))
def test_a_wrong_key_halts_at_the_first_call(reason):
    probe = key_probe()
    probe.started(HANDFUL, 0)
    verdict = end(probe, "a", failure(reason))
    assert verdict.halt is not None
    assert [call for call, _ in verdict.give_back] == ["a"]
    # The others of the handful say the same, and are given back as well.
    assert [call for call, _ in end(probe, "b", failure(reason)).give_back] == ["b"]
    assert probe.room(100) == 0


@pytest.mark.parametrize("reason", sorted(MODEL_FAULTS))
def test_a_missing_model_halts_when_the_whole_handful_says_so(reason):
    probe = model_probe()
    probe.started(3, 0)
    assert end(probe, "a", failure(reason)).halt is None
    assert end(probe, "b", failure(reason)).halt is None
    verdict = end(probe, "c", failure(reason))
    assert verdict.halt is not None
    assert [call for call, _ in verdict.give_back] == ["a", "b", "c"]


def test_held_calls_take_up_room_so_no_more_than_a_handful_is_ever_burned():
    probe = model_probe()
    probe.started(HANDFUL, 0)
    for call in "abc":
        end(probe, call, failure(Reason.NOT_AVAILABLE))
    assert probe.room(0) == 0


def test_a_403_among_successes_is_just_a_failed_job():
    probe = model_probe()
    probe.started(3, 0)
    assert not end(probe, "too long", failure(Reason.FORBIDDEN)).decide
    verdict = end(probe, "fine", GOOD)
    assert [call for call, _ in verdict.decide] == ["too long", "fine"]
    assert [call for call, _ in end(probe, "later", failure(Reason.FORBIDDEN)).decide] == ["later"]


def test_a_400_shows_that_requests_are_judged_one_by_one():
    probe = model_probe()
    probe.started(3, 0)
    end(probe, "a", failure(Reason.NOT_AVAILABLE))
    verdict = end(probe, "b", failure(Reason.REJECTED))
    assert [call for call, _ in verdict.decide] == ["a", "b"]
    assert probe.room(9) == HANDFUL - 1


def test_a_key_that_worked_halts_after_several_refusals_in_a_row():
    probe = key_probe()
    probe.started(20, 0)
    end(probe, "good", GOOD)
    for call in "abcd":
        assert end(probe, call, failure(Reason.UNAUTHORIZED)).halt is None
    verdict = end(probe, "e", failure(Reason.UNAUTHORIZED))
    assert verdict.halt is not None
    assert [call for call, _ in verdict.give_back] == list("abcde")


def test_a_success_in_between_starts_the_count_again_and_fails_what_was_held():
    probe = key_probe()
    probe.started(20, 0)
    end(probe, "good", GOOD)
    for call in "abcd":
        end(probe, call, failure(Reason.PAYMENT_REQUIRED))
    verdict = end(probe, "fine", GOOD)
    assert [call for call, _ in verdict.decide] == ["a", "b", "c", "d", "fine"]
    assert end(probe, "e", failure(Reason.PAYMENT_REQUIRED)).halt is None


def test_nothing_left_to_learn_from():
    unproven, proven = model_probe(), key_probe()
    unproven.started(2, 0)
    end(unproven, "a", failure(Reason.NOT_AVAILABLE))
    end(unproven, "b", failure(Reason.SERVER_ERROR))
    assert unproven.nothing_left().halt is not None
    proven.started(2, 0)
    end(proven, "a", GOOD)
    end(proven, "b", failure(Reason.UNAUTHORIZED))
    verdict = proven.nothing_left()
    assert verdict.halt is None
    assert [call for call, _ in verdict.decide] == ["b"]
