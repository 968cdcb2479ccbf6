"""Who gets the permits: class, then deadlines at risk, then fair shares; and the laws that hold whatever comes."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.contenders import MEANT
from promptmill.fairness import AGEING_SECONDS, Contender, Served, Tenant, class_of, shares
from promptmill.priority import BACKGROUND, HELD, HIGH, INTERACTIVE
from promptmill.urgency import BREATH_SECONDS

CASES = [
    ("nobody", [], 5, []),
    ("no permits", [Contender(1)], 0, []),
    ("alone", [Contender(1)], 5, [(1, 5)]),
    ("equal", [Contender(1), Contender(2)], 6, [(1, 3), (2, 3)]),
    ("the one that has none in flight first", [Contender(1, in_flight=100), Contender(2)], 10, [(2, 10)]),
    ("level, then equal", [Contender(1, in_flight=4), Contender(2)], 8, [(1, 2), (2, 6)]),
    ("priority first", [Contender(1, priority=1), Contender(2)], 3, [(1, 3)]),
    ("what is ready", [Contender(1, ready=2), Contender(2)], 6, [(1, 2), (2, 4)]),
    ("more permits than use", [Contender(1, ready=2), Contender(2, ready=1)], 9, [(1, 2), (2, 1)]),
    ("its own cap", [Contender(1, room=1), Contender(2)], 6, [(1, 1), (2, 5)]),
    ("no room at all", [Contender(1, room=0), Contender(2, room=-1)], 6, []),
    ("what a higher integer has no use for", [Contender(1, 5, ready=2), Contender(2)], 6, [(1, 2), (2, 4)]),
    ("what a higher class has no use for", [Contender(1, HIGH, ready=2), Contender(2)], 6, [(1, 2), (2, 4)]),
    ("batches by weight", [Contender(1, weight=1), Contender(2, weight=2)], 6, [(1, 2), (2, 4)]),
    ("the longest waiting of equals", [Contender(1, waiting_since=9), Contender(2, waiting_since=3)], 1, [(2, 1)]),
    ("tenants before batches",
     [Contender(1), Contender(2), Contender(3), Contender(4, tenant_id=2)], 6, [(1, 1), (2, 1), (3, 1), (4, 3)]),
    ("no tenant outbids another",
     [Contender(1, priority=900), Contender(2, tenant_id=2)], 6, [(1, 3), (2, 3)]),
    ("but a class does", [Contender(1, priority=HIGH), Contender(2, tenant_id=2)], 6, [(1, 6)]),
    ("a floor for the class below", [Contender(1, HIGH), Contender(2)], 100, [(1, 98), (2, 2)]),
    ("a floor for each class below",
     [Contender(1, INTERACTIVE), Contender(2, HIGH), Contender(3), Contender(4, BACKGROUND)], 100,
     [(1, 94), (2, 2), (3, 2), (4, 2)]),
    ("long calls do not pile up beyond the floor",
     [Contender(1, HIGH, in_flight=898), Contender(2, in_flight=22)], 80, [(1, 80)]),
    ("a floor that nobody can use goes back", [Contender(1, HIGH), Contender(2, room=1)], 200, [(1, 199), (2, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("contenders", "permits", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cases(contenders, permits, expected):
    assert shares(contenders, permits) == expected


TENANT_CASES = [
    ("weights", {1: Tenant(weight=1), 2: Tenant(weight=2)}, 6, [(1, 2), (2, 4)]),
    ("a cap over all its batches", {2: Tenant(room=1)}, 6, [(1, 5), (2, 1)]),
    ("calls of batches that have nothing ready", {1: Tenant(in_flight=4)}, 6, [(1, 1), (2, 5)]),
]


@pytest.mark.parametrize(("tenants", "permits", "expected"), [c[1:] for c in TENANT_CASES], ids=lambda v: str(v)[:20])
def test_what_holds_for_a_tenant(tenants, permits, expected):
    assert shares([Contender(1), Contender(2, tenant_id=2)], permits, tenants=tenants) == expected


def test_a_room_is_shared_by_the_batches_of_all_classes():
    both = [Contender(1, HIGH), Contender(2)]
    assert sum(n for _, n in shares(both, 500, tenants={1: Tenant(room=7)})) == 7


# One permit a second; batch 1 has no deadline.
DEADLINE_CASES = [
    ("a day's window is in no hurry", Contender(2, deadline=86_400, ready=10), [(1, 2), (2, 2)]),
    ("tight", Contender(2, deadline=1_000, ready=600), [(2, 4)]),
    ("pressing", Contender(2, deadline=1_000, ready=200), [(2, 4)]),
    ("not quite", Contender(2, deadline=1_000, ready=120), [(1, 2), (2, 2)]),
    ("near, with few left", Contender(2, deadline=600, ready=3), [(1, 1), (2, 3)]),
    ("its cap holds", Contender(2, deadline=1_000, ready=600, room=1), [(1, 3), (2, 1)]),
    ("beyond help", Contender(2, deadline=100, ready=60_000), [(1, 2), (2, 2)]),
    ("past", Contender(2, deadline=-1, ready=10), [(1, 2), (2, 2)]),
    ("not known how many, and near", Contender(2, deadline=500), [(2, 4)]),
    ("not known how many, and far", Contender(2, deadline=5_000), [(1, 2), (2, 2)]),
]


@pytest.mark.parametrize(("dated", "expected"), [c[1:] for c in DEADLINE_CASES], ids=[c[0] for c in DEADLINE_CASES])
def test_deadlines(dated, expected):
    assert shares([Contender(1), dated], 4, now=0.0, seconds_per_permit=1.0) == expected


def test_the_earliest_deadline_first_and_all_that_is_due_before_a_tight_one():
    loads = [
        Contender(1, deadline=1_000, ready=600),
        Contender(2, deadline=900, ready=2),
        Contender(3, deadline=4_000, ready=400),
    ]
    assert shares(loads, 5, now=0.0, seconds_per_permit=1.0) == [(1, 3), (2, 2)]


def test_who_would_come_too_late_by_far_stops_nobody():
    """Alone each could be done in not quite twice its time, together not."""
    ten = [Contender(i, tenant_id=i, deadline=1_000 + i, ready=1_900) for i in range(10)]
    got = dict(shares([*ten, Contender(99, tenant_id=99)], 110, now=0.0, seconds_per_permit=1.0))
    assert got == {0: 110}
    past_help = [Contender(i, tenant_id=i, deadline=1_000 + i, ready=2_100) for i in range(10)]
    got = dict(shares([*past_help, Contender(99, tenant_id=99)], 110, now=0.0, seconds_per_permit=1.0))
    assert set(got.values()) == {10}


def test_a_call_that_is_held_goes_first():
    """Also before what is due in ten minutes, and where the pace is not known."""
    held, near = Contender(1, HELD), Contender(2, HELD - 1, tenant_id=2, deadline=500.0, ready=100_000)
    assert shares([held, near], 10, now=0.0) == [(1, 10)]
    assert shares([held, near], 10, now=0.0, seconds_per_permit=0.01) == [(1, 10)]


def test_what_presses_shares_by_weight_before_what_does_not():
    loads = [Contender(i, tenant_id=i, deadline=10_000 + i, ready=1_000) for i in (1, 2, 3)]
    tenants = {i: Tenant(weight=i) for i in (1, 2, 3)}
    other = Contender(4, tenant_id=4)
    split = shares([*loads, other], 12, tenants=tenants, now=0.0, seconds_per_permit=1.0)
    assert split == [(1, 2), (2, 4), (3, 6)]
    split = shares([*loads, other], 12, tenants=tenants, now=BREATH_SECONDS - 0.5, seconds_per_permit=1.0)
    assert dict(split)[4] > 0, "now and then the others have their turn"


@pytest.mark.parametrize("tenant_id", [1, 2])
@pytest.mark.parametrize("deadline", [None, 86_400.0])
def test_what_is_small_waits_for_no_deadline(tenant_id, deadline):
    large = Contender(1, deadline=80_000.0, ready=60_000)
    small = Contender(2, tenant_id=tenant_id, deadline=deadline, ready=10)
    assert shares([large, small], 12, now=0.0, seconds_per_permit=1.0) == [(1, 2), (2, 10)]


def test_what_is_split_is_not_small():
    """A hundred batches of ten are a thousand jobs, and get no more of the time that is left over than one would."""
    large = Contender(1, deadline=80_000.0, ready=60_000)
    split = [Contender(i, tenant_id=2, ready=10) for i in range(10, 110)]
    got = dict(shares([large, *split, Contender(2, tenant_id=3, ready=60)], 500, now=0.0, seconds_per_permit=1.0))
    assert got[2] == 60
    assert sum(count for batch_id, count in got.items() if batch_id >= 10) < 0.01 * 20_000
    assert got[1] > 250


def test_work_of_higher_classes_is_in_the_way_of_a_deadline():
    dated, other = Contender(1, deadline=1_000, ready=100), Contender(2)
    high = Contender(3, HIGH, ready=400, room=0)
    assert shares([dated, other], 4, now=0.0, seconds_per_permit=1.0) == [(1, 2), (2, 2)]
    assert shares([dated, other, high], 4, now=0.0, seconds_per_permit=1.0) == [(1, 2), (2, 2)], "it can take none"
    high = Contender(3, HIGH, ready=400, room=1)
    assert shares([dated, other, high], 4, now=0.0, seconds_per_permit=1.0) == [(1, 3), (3, 1)]


def test_while_the_pace_is_not_known_only_a_near_deadline_counts():
    for deadline, expected in ((500, [(2, 4)]), (5_000, [(1, 2), (2, 2)])):
        assert shares([Contender(1), Contender(2, deadline=deadline, ready=9)], 4, now=0.0) == expected


def test_a_drain_that_has_just_begun_lets_an_aged_class_begin():
    contenders = [Contender(1, HIGH), Contender(2, BACKGROUND, waiting_since=0.0)]
    assert shares(contenders, 1, now=AGEING_SECONDS - 1) == [(1, 1)]
    assert shares(contenders, 1, now=AGEING_SECONDS) == [(2, 1)]
    later = Served().noting(contenders, [(2, 1)])
    assert shares(contenders, 1, now=AGEING_SECONDS, served=later) == [(1, 1)]


@pytest.mark.parametrize(
    ("priority", "rank"),
    [(-1_999, 0), (-1_000, 0), (-999, 1), (0, 1), (999, 1), (1_000, 2), (1_999, 2), (2_000, 3), (2_999, 3), (3_000, 4)],
)
def test_classes(priority, rank):
    assert class_of(priority) == rank


# ---------------------------------------------------------------- laws

_MAYBE = st.none() | st.integers(0, 60)
_CONTENDERS = st.lists(
    st.builds(
        Contender,
        st.integers(0, 10_000),
        st.sampled_from([BACKGROUND, -1_500, 0, 7, HIGH, INTERACTIVE]),
        st.integers(0, 50),
        st.integers(1, 4),
        st.sampled_from([0.5, 1.0, 3.0]),
        st.none() | st.floats(-10, 1_000),
        _MAYBE,
        _MAYBE,
        st.none() | st.floats(-2_000, 0),
    ),
    max_size=20,
    unique_by=lambda each: each.batch_id,
)
_TENANTS = st.dictionaries(
    st.integers(1, 4), st.builds(Tenant, st.sampled_from([0.1, 1.0, 2.0]), st.none() | st.integers(0, 99), _MAYBE)
)
_SCARCE = st.sampled_from(["places", "starts"])
_PACE = st.none() | st.floats(0.01, 10)


def _usable(contenders, tenants, permits):
    """The most permits that contenders can take."""
    per_tenant = Counter()
    for each in contenders:
        per_tenant[each.tenant_id] += min(n for n in (permits, each.ready, each.room) if n is not None)
    rooms = {t: tenant.room for t, tenant in tenants.items() if tenant.room is not None}
    return sum(min(count, rooms.get(t, count)) for t, count in per_tenant.items())


@given(_CONTENDERS, _TENANTS, st.integers(1, 200), _SCARCE, _PACE)
def test_permits_are_conserved_and_caps_hold(contenders, tenants, permits, scarce, pace):
    split = shares(contenders, permits, tenants=tenants, scarce=scarce, now=0.0, seconds_per_permit=pace)
    got = dict(split)
    assert split == sorted(got.items())
    assert min(got.values(), default=1) > 0
    assert sum(got.values()) == min(permits, _usable(contenders, tenants, permits))
    per_tenant = Counter()
    for each in contenders:
        count = got.get(each.batch_id, 0)
        assert count <= min(n for n in (permits, each.ready, each.room) if n is not None)
        per_tenant[each.tenant_id] += count
    for tenant_id, tenant in tenants.items():
        assert tenant.room is None or per_tenant[tenant_id] <= tenant.room


@given(_CONTENDERS, st.integers(1, 200), _SCARCE, _PACE)
def test_no_lower_class_goes_first_beyond_its_floor(contenders, permits, scarce, pace):
    got = dict(shares(contenders, permits, scarce=scarce, now=0.0, seconds_per_permit=pace))
    starved = [each for each in contenders if got.get(each.batch_id, 0) < _usable([each], {}, permits)]
    top = max((class_of(each.priority) for each in starved), default=-1)
    below = Counter()
    for each in contenders:
        if class_of(each.priority) < top:
            below[class_of(each.priority)] += got.get(each.batch_id, 0)
    for count in below.values():
        assert count <= MEANT * permits + 1


@given(_CONTENDERS, _TENANTS, st.integers(1, 200), st.randoms(use_true_random=False))
def test_the_order_in_which_they_come_does_not_matter(contenders, tenants, permits, rng):
    mixed = rng.sample(contenders, len(contenders))
    assert shares(contenders, permits, tenants=tenants) == shares(mixed, permits, tenants=tenants)


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


def test_a_thousand_contenders_and_five_hundred_permits_take_milliseconds():
    contenders = [
        Contender(i, (0, 5, HIGH)[i % 3], i % 30, i % 40, deadline=i * 7.0 if i % 2 else None, ready=500)
        for i in range(1_000)
    ]
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        shares(contenders, 500, now=0.0, seconds_per_permit=0.1)
        best = min(best, time.process_time() - began)
    assert best < 0.05  # 3 ms where nobody else is; the bound catches what is quadratic
