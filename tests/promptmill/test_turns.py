"""Turns that are played forward, against lanes that are worked off claim after claim."""

import dataclasses
import time
from random import Random

import pytest

from promptmill.fairness import Contender, Served, Tenant, shares
from promptmill.priority import BACKGROUND, HIGH
from promptmill.turns import MOST_PLAYED, Standing, Tempo, played, standing


def dice_for(seed):
    return Random(seed)  # noqa: S311  # nothing secret


def worked_off(contenders, *, tenants=None, pace=None, claim=1):
    """Batch id → jobs that the lane has done when the last of the batch is claimed. Claims come at no full second."""
    left, served, done, ends = {each.batch_id: each.ready for each in contenders}, Served(), 0, {}
    dice = dice_for(len(left))
    while any(left.values()):
        ready = [dataclasses.replace(c, ready=left[c.batch_id]) for c in contenders if left[c.batch_id]]
        split = shares(
            ready, claim, tenants=tenants, served=served, scarce="starts",
            now=None if pace is None else (done + dice.random() * claim) * pace, seconds_per_permit=pace,
        )  # fmt: skip
        served = served.noting(ready, split)
        for batch_id, count in split:
            left[batch_id] -= count
            done += count
        ends |= {batch_id: done for batch_id, _ in split if not left[batch_id]}
    return ends


WEIGHTS = (1, 1, 1, 2, 3)
TENANTS = (1, 2, 3, 4)


def load(dice, *, pace=None, classes=False):
    """(batches, tenants): sizes, weights, classes and deadlines as they come."""
    tenants = {tenant_id: Tenant(weight=dice.choice(WEIGHTS)) for tenant_id in TENANTS}
    contenders = [
        Contender(
            number,
            dice.choice([0, 0, 0, 5, HIGH, BACKGROUND]) if classes else 0,
            tenant_id=dice.choice(TENANTS),
            weight=dice.choice(WEIGHTS),
            ready=dice.randint(*dice.choice([(1, 30), (30, 300), (300, 3_000)])),
        )
        for number in range(dice.randint(2, 10))
    ]
    if pace is None:
        return contenders, tenants
    seconds = sum(each.ready for each in contenders) * pace
    dated = [
        dataclasses.replace(each, deadline=dice.uniform(0.2, 1.0) * dice.choice([1.5, 5.0, 12.0]) * seconds)
        if dice.random() < 0.6
        else each
        for each in contenders
    ]
    return dated, tenants


@pytest.mark.parametrize("classes", [False, True])
def test_nine_of_ten_batches_end_when_it_was_foretold(classes):
    """Within 15 %, or two claims, at paces at which the last ten minutes are most of the time, or next to nothing."""
    dice, close, all_ = dice_for(classes), 0, 0
    for _ in range(50):
        pace, claim = dice.choice([0.05, 0.2, 1.0, 5.0]), dice.choice([1, 4])
        contenders, tenants = load(dice, pace=pace, classes=classes)
        told = played(contenders, tenants, Tempo(seconds_per_job=pace))
        ends = worked_off(contenders, tenants=tenants, pace=pace, claim=claim)
        close += sum(abs(told[id_] - end) <= max(0.15 * end, 2 * claim) for id_, end in ends.items())
        all_ += len(ends)
    assert close >= 0.9 * all_, (close, all_)


def exactly(contenders, tenants):
    """By weights alone, worked out by hand: of one class and one integer."""
    left, done, ends = {each.batch_id: float(each.ready) for each in contenders}, 0.0, {}
    while active := [each for each in contenders if left[each.batch_id] > 1e-9]:
        weights = {each.tenant_id: tenants[each.tenant_id].weight for each in active}
        siblings = {id_: sum(each.weight for each in active if each.tenant_id == id_) for id_ in weights}
        parts = {
            each.batch_id: weights[each.tenant_id] / sum(weights.values()) * each.weight / siblings[each.tenant_id]
            for each in active
        }
        jobs = min(left[id_] / part for id_, part in parts.items())
        done += jobs
        for id_, part in parts.items():
            left[id_] -= jobs * part
            if left[id_] <= 1e-9:
                ends[id_] = done
    return ends


def test_without_deadlines_it_agrees_with_the_weights():
    dice, off = dice_for(3), []
    for _ in range(60):
        contenders, tenants = load(dice)
        told = played(contenders, tenants)
        off += [abs(told[id_] - end) / max(end, 20.0) for id_, end in exactly(contenders, tenants).items()]
    assert sum(off) / len(off) < 0.02
    assert sorted(off)[len(off) * 95 // 100] < 0.07


@pytest.mark.parametrize("pace", [None, 0.01, 1.0, 100.0])
def test_no_job_is_lost_and_none_is_made(pace):
    dice = dice_for(5)
    for _ in range(20):
        contenders, tenants = load(dice, pace=pace, classes=True)
        told = played(contenders, tenants, Tempo(seconds_per_job=pace))
        assert max(told.values()) == pytest.approx(sum(each.ready for each in contenders))
        assert all(told[each.batch_id] >= each.ready - 1e-3 for each in contenders)


DAY = 86_400.0


def test_ten_beside_a_batch_that_is_tight():
    """They would take more than a hundredth of the time that is left over, and wait."""
    tight, ten = Contender(1, tenant_id=1, ready=2_400, deadline=125.0), Contender(2, tenant_id=2, ready=10)
    told = played([tight, ten], tempo=Tempo(seconds_per_job=0.05))
    assert told == {1: pytest.approx(2_400, rel=0.01), 2: pytest.approx(2_410)}
    assert worked_off([tight, ten], pace=0.05)[2] == pytest.approx(2_410, rel=0.05)


def test_dated_batches_of_which_each_is_in_the_next_ones_way():
    three = [Contender(i, tenant_id=i, ready=1_800, deadline=500.0 + i) for i in (1, 2, 3)]
    told = played(three, tempo=Tempo(seconds_per_job=0.1))
    assert told == {i: pytest.approx(1_800 * i, rel=0.01) for i in (1, 2, 3)}


def test_day_windows_are_no_order_until_they_press():
    pair = [Contender(i, tenant_id=i, ready=5_000 * i, deadline=DAY + i) for i in (1, 2)]
    assert played(pair, tempo=Tempo(seconds_per_job=0.5)) == {1: pytest.approx(10_000), 2: pytest.approx(15_000)}
    assert played(pair, tempo=Tempo(seconds_per_job=8.0))[1] == pytest.approx(5_000, rel=0.05)


def test_where_the_pace_is_not_known_there_are_no_deadlines():
    pair = [Contender(1, tenant_id=1, ready=100, deadline=1.0), Contender(2, tenant_id=2, ready=100)]
    assert played(pair) == {1: pytest.approx(199, abs=2), 2: pytest.approx(200)}


def test_workers_go_by_the_limits_and_the_time_by_the_pace():
    """At the pace of the limits there is no hurry."""
    pair = [Contender(1, tenant_id=1, ready=1_000, deadline=9_000.0), Contender(2, tenant_id=2, ready=9_000)]
    told = [played(pair, tempo=Tempo(seconds_per_job=2.0, seconds_per_permit=each))[1] for each in (None, 0.01)]
    assert told == [pytest.approx(1_670, rel=0.25), pytest.approx(2_000, rel=0.05)]


def test_a_deadline_is_when_the_last_call_has_to_start():
    pair = [Contender(1, tenant_id=1, ready=100, deadline=3_000.0), Contender(2, tenant_id=2, ready=9_000)]
    tempos = [Tempo(seconds_per_job=0.1, call_seconds=each) for each in (0.0, 2_500.0)]
    assert [played(pair, tempo=each)[1] for each in tempos] == [pytest.approx(200, rel=0.1), pytest.approx(100)]


def test_nothing_left_is_no_wait():
    assert played([Contender(1, ready=0), Contender(2, ready=5)]) == {1: 0.0, 2: pytest.approx(5)}


def test_among_many_all_share():
    many = [Contender(i, tenant_id=i, ready=100, deadline=50.0) for i in range(MOST_PLAYED + 1)]
    told = played(many, tempo=Tempo(seconds_per_job=1.0))
    assert list(told.values()) == [pytest.approx(100 * (MOST_PLAYED + 1))] * (MOST_PLAYED + 1)


def test_ten_batches_are_played_in_milliseconds():
    dice, took = dice_for(9), []
    for _ in range(20):
        contenders, tenants = load(dice, pace=0.1, classes=True)
        began = time.process_time()
        played(contenders, tenants, Tempo(seconds_per_job=0.1))
        took.append(time.process_time() - began)
    assert sorted(took)[10] < 0.02  # here a tenth of it; on a busy machine all takes longer


# ---------------------------------------------------------------- where a batch stands

OWN = Contender(1, ready=100)
STANDINGS = [
    ("alone", [], Standing(0, 0, 1.0)),
    ("a higher class", [Contender(2, HIGH, tenant_id=2, ready=50)], Standing(50, 0, 1.0)),
    ("a lower class", [Contender(2, BACKGROUND, ready=50)], Standing(0, 0, 1.0)),
    ("a higher integer of its tenant", [Contender(2, 5, ready=50)], Standing(50, 0, 1.0)),
    ("a lower integer of its tenant", [Contender(2, -5, ready=50)], Standing(0, 0, 1.0)),
    ("a higher integer of another", [Contender(2, 5, tenant_id=2, ready=50)], Standing(0, 50, 0.5)),
    ("its equal", [Contender(2, ready=50)], Standing(0, 50, 0.5)),
    ("its equal, heavier", [Contender(2, weight=3, ready=50)], Standing(0, 50, 0.25)),
    ("a heavier tenant", [Contender(2, tenant_id=3, ready=50)], Standing(0, 50, 0.25)),
    ("not known how many", [Contender(2)], Standing(0, 100, 0.5)),
    ("several", [Contender(i, tenant_id=2, ready=50) for i in (2, 3)] + [Contender(4, ready=1)],
     Standing(0, 101, 0.25)),
]  # fmt: skip


@pytest.mark.parametrize(("others", "expected"), [c[1:] for c in STANDINGS], ids=[c[0] for c in STANDINGS])
def test_standing(others, expected):
    assert standing(OWN, [OWN, *others], {3: Tenant(weight=3.0)}) == expected


def test_whom_urgency_puts_first_goes_ahead():
    tight = Contender(2, tenant_id=2, ready=50, deadline=500.0)
    later = Contender(3, tenant_id=3, ready=70, deadline=550.0)
    tempo = Tempo(seconds_per_job=1.0)
    all_ = [OWN, tight, later]
    assert standing(OWN, all_) == Standing(0, 120, pytest.approx(1 / 3))
    assert standing(OWN, all_, tempo=tempo) == Standing(120, 0, 1.0)
    assert standing(tight, all_, tempo=tempo) == Standing(0, 0, 1.0)
    assert standing(later, all_, tempo=tempo) == Standing(50, 0, 1.0)


def test_those_that_press_share_before_the_others():
    pressing = [Contender(i, tenant_id=i, ready=10_000, deadline=DAY) for i in (2, 3)]
    own, tempo = dataclasses.replace(OWN, ready=5_000), Tempo(seconds_per_job=1.5)
    assert standing(pressing[0], [own, *pressing], tempo=tempo) == Standing(0, 10_000, 0.5)
    assert standing(own, [own, *pressing], tempo=tempo) == Standing(20_000, 0, 1.0)
    assert standing(OWN, [OWN, *pressing], tempo=tempo) == Standing(0, 0, 1.0)  # small work waits for none
    assert standing(pressing[0], [OWN, *pressing], tempo=tempo) == Standing(100, 10_000, 0.5)


def test_a_share_of_nothing_is_the_end_of_the_queue():
    assert Standing(beside=90, share=0.0).jobs_until_done(10) == 100
