"""The choice of faults: scripted first, then by percentage, and the same for the same seed."""

import pytest

from cli.simulate.faults import BadFlagError, FaultPlan


def test_no_percentages_no_faults():
    plan = FaultPlan(0, {})
    assert {plan.next_fault() for _ in range(100)} == {None}


def test_the_same_seed_meets_the_same_faults():
    faults = {"503": 20, "reset": 10}
    one, other, third = (FaultPlan(seed, faults) for seed in (1, 1, 2))
    first = [one.next_fault() for _ in range(500)]
    assert first == [other.next_fault() for _ in range(500)]
    assert first != [third.next_fault() for _ in range(500)]


def test_percentages_are_met():
    plan = FaultPlan(3, {"503": 20, "reset": 5})
    drawn = [plan.next_fault() for _ in range(10_000)]
    assert drawn.count("503") == pytest.approx(2000, abs=160)
    assert drawn.count("reset") == pytest.approx(500, abs=90)


def test_a_hundred_percent_is_always():
    plan = FaultPlan(0, {"hang": 100})
    assert {plan.next_fault() for _ in range(200)} == {"hang"}


def test_a_script_comes_before_the_percentages():
    plan = FaultPlan(0, {"500": 100})
    plan.set_script(["429", 503, "ok"])
    assert [plan.next_fault() for _ in range(4)] == ["429", "503", None, "500"]


def test_a_restart_plays_the_same_faults_again():
    plan = FaultPlan(9, {"502": 50})
    first = [plan.next_fault() for _ in range(50)]
    plan.set_script(["429"])
    plan.restart()
    assert [plan.next_fault() for _ in range(50)] == first


def test_a_script_is_checked_before_it_is_taken():
    plan = FaultPlan(0, {})
    plan.set_script(["429"])
    with pytest.raises(BadFlagError, match="boom"):
        plan.set_script(["503", "boom"])
    assert plan.script_left() == 1
