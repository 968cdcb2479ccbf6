"""Claim after claim on a simulated lane: what shares come to over time, and that deadlines hold where they can."""

import dataclasses
import heapq
from collections import Counter
from random import Random

import pytest

from promptmill.contenders import FLOOR
from promptmill.fairness import Contender, Served, Tenant, shares
from promptmill.priority import BACKGROUND, HIGH


def dice_for(seed):
    return Random(seed)  # noqa: S311  # nothing secret


def places_lane(contenders, places, seconds, calls, *, tenants=None, call_seconds=None, running=()):
    """Run so many calls on a lane that is full whenever somebody has a job: (batch, end) of each, in order of ends."""
    ready = {c.batch_id: c.ready for c in contenders}
    in_flight, running, ended, served, now = Counter(c for *_, c in running), [*running], [], Served(), 0.0
    while len(ended) < calls:
        now_ready = [
            dataclasses.replace(c, in_flight=in_flight[c.batch_id], ready=ready[c.batch_id])
            for c in contenders
            if ready[c.batch_id] != 0
        ]
        split = shares(now_ready, places - len(running), tenants=tenants, served=served)
        served = served.noting(now_ready, split)
        for batch_id, count in split:
            in_flight[batch_id] += count
            if ready[batch_id] is not None:
                ready[batch_id] -= count
            for _ in range(count):
                took = seconds() if call_seconds is None else call_seconds[batch_id]
                heapq.heappush(running, (now + took, len(ended) + len(running), batch_id))
        if not running:
            break
        now, _, batch_id = heapq.heappop(running)
        in_flight[batch_id] -= 1
        ended.append((batch_id, now))
    return ended


def rate_lane(contenders, rounds, permits, *, tenants=None, stays=0):
    """So many claims of so many permits on a lane whose rate is what is scarce; calls stay for `stays` claims."""
    served, total, out = Served(), Counter(), []
    for _ in range(rounds):
        in_flight = Counter()
        for split in out[-stays:] if stays else []:
            in_flight.update(dict(split))
        now = [dataclasses.replace(c, in_flight=in_flight[c.batch_id]) for c in contenders]
        split = shares(now, permits, tenants=tenants, served=served, scarce="starts")
        served = served.noting(now, split)
        out.append(split)
        total.update(dict(split))
    return total


THREE = [Contender(i, tenant_id=i) for i in (1, 2, 3)]
WEIGHTS = {i: Tenant(weight=i) for i in (1, 2, 3)}


def near(total, parts, tolerance=0.05):
    whole, all_parts = sum(total.values()), sum(parts.values())
    for key, part in parts.items():
        assert total[key] / whole == pytest.approx(part / all_parts, rel=tolerance), total


@pytest.mark.parametrize("places", [1, 2, 3, 4, 5, 7, 60])
def test_weights_come_true_where_places_are_scarce(places):
    rng = dice_for(places)
    ended = places_lane(THREE, places, lambda: rng.uniform(1, 5), 4_000, tenants=WEIGHTS)
    near(Counter(batch_id for batch_id, _ in ended), {1: 1, 2: 2, 3: 3})


@pytest.mark.parametrize(("permits", "stays"), [(1, 0), (1, 40), (7, 3), (500, 1)])
def test_weights_come_true_where_starts_are_scarce(permits, stays):
    near(rate_lane(THREE, 600, permits, tenants=WEIGHTS, stays=stays), {1: 1, 2: 2, 3: 3})


def test_batches_of_a_tenant_share_by_weight():
    three = [Contender(i, weight=i) for i in (1, 2, 3)]
    near(rate_lane(three, 1_200, 1), {1: 1, 2: 2, 3: 3})


def test_a_tenant_with_a_hundred_batches_has_no_more_than_one_with_one():
    many = [Contender(i) for i in range(100)] + [Contender(100, tenant_id=2)]
    total = rate_lane(many, 2_000, 1)
    assert total[100] == pytest.approx(1_000, rel=0.05)
    assert min(total[i] for i in range(100)) >= 9


def test_long_calls_take_their_share_of_places_and_no_more():
    """Ten seconds against a tenth: half the places each, and so a hundred times the calls."""
    two = [Contender(1, tenant_id=1), Contender(2, tenant_id=2)]
    ended = places_lane(two, 20, None, 20_000, call_seconds={1: 10.0, 2: 0.1})
    total = Counter(batch_id for batch_id, _ in ended)
    assert total[2] / total[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("permits", [1, 10, 500])
@pytest.mark.parametrize("stays", [0, 5])
def test_background_has_its_floor(permits, stays):
    pair = [Contender(1, HIGH), Contender(2, BACKGROUND)]
    total = rate_lane(pair, 5_000 if permits == 1 else 500, permits, stays=stays)
    assert FLOOR <= total[2] / sum(total.values()) <= 0.025


@pytest.mark.parametrize("places", [1, 20, 64, 99, 149, 256, 400])
def test_background_has_its_floor_where_places_are_scarce(places):
    rng = dice_for(places)
    pair = [Contender(1, HIGH), Contender(2, BACKGROUND)]
    ended = places_lane(pair, places, lambda: rng.uniform(1, 5), 10_000)
    part = sum(batch_id == 2 for batch_id, _ in ended) / len(ended)
    assert FLOOR <= part <= 0.025


def test_background_batches_that_come_and_go_have_no_more_than_the_floor():
    """Each is new to the lane, so nothing is known of it: the class's share is counted by class."""
    served, total = Served(), Counter()
    for number in range(5_000):
        pair = [Contender(1, HIGH), Contender(100 + number // 3, BACKGROUND, tenant_id=number)]
        split = shares(pair, 1, served=served, scarce="starts")
        served = served.noting(pair, split)
        total.update(batch_id == 1 for batch_id, _ in split)
    assert FLOOR <= total[False] / 5_000 <= 0.025


def test_having_been_alone_is_no_debt():
    served = Served()
    alone, other = Contender(1, tenant_id=1), Contender(2, tenant_id=2)
    for _ in range(100):
        served = served.noting([alone], [(1, 500)])
    first = []
    for _ in range(600):
        split = shares([alone, other], 1, served=served, scarce="starts")
        served = served.noting([alone, other], split)
        first.append(split[0][0])
    assert first[:200].count(1) > 0
    assert first[300:].count(1) == pytest.approx(150, abs=5)


@pytest.mark.parametrize("places", [2, 4, 8, 20])
def test_ten_beside_a_hundred_thousand_take_at_most_twice_as_long(places):
    small, large = Contender(1, tenant_id=1, ready=10), Contender(2, tenant_id=2, ready=100_000)

    def ends(contenders, calls, running=()):
        ended = places_lane(contenders, places, lambda: 1.0, calls, running=running)
        return [at for batch_id, at in ended if batch_id == 1]

    alone = ends([small], 10)[-1]
    # It comes when every place is taken by the other: a call of the other has to end first.
    taken = [((i + 1) / places, -i, 2) for i in range(places)]
    beside = ends([small, large], 60, taken)
    assert len(beside) == 10
    assert beside[-1] - taken[0][0] <= 2.0 * alone  # from when the first place is free


# ---------------------------------------------------------------- deadlines, against an oracle

PER_TICK = 4  # permits a second, one claim a second


def holds(loads, rate):
    """Could a lane of this rate do all of it, the earliest deadline first? (No interval asks for more than it has.)"""
    for start in {release for release, _, _ in loads}:
        for end in {deadline for _, deadline, _ in loads}:
            work = sum(n for release, deadline, n in loads if release >= start and deadline <= end)
            if work > rate * max(0, end - start):
                return False
    return True


def random_load(rng, rate, releases, *, times=1):
    """As much as fits, in a few batches: [(release, deadline, jobs)], so that some deadlines are tight."""
    loads = []
    for _ in range(rng.randint(2, 7)):
        release = rng.choice(releases) * times
        deadline = release + rng.randint(1, 30) * times
        for jobs in (rng.randint(20, 120), rng.randint(5, 40), rng.randint(1, 6)):
            if holds([*loads, (release, deadline, jobs * times)], rate):
                loads.append((release, deadline, jobs * times))
                break
    return loads


def missed(loads, *, below=False, each=1):
    """Jobs that are not done by their deadline, beside two batches that have none; one claim for `each` seconds."""
    left = [n for _, _, n in loads]
    served = Served()
    others = [Contender(101, tenant_id=101), Contender(102, tenant_id=102)]
    if below:
        others.append(Contender(103, BACKGROUND, tenant_id=103))
    for now in range(0, max(deadline for _, deadline, _ in loads), each):
        contenders = others + [
            Contender(i, tenant_id=i % 3, deadline=deadline, ready=left[i])
            for i, (release, deadline, _) in enumerate(loads)
            if release <= now < deadline and left[i]
        ]
        split = shares(contenders, PER_TICK * each, now=float(now), seconds_per_permit=1 / PER_TICK, served=served)
        served = served.noting(contenders, split)
        for batch_id, count in split:
            if batch_id < 100:
                left[batch_id] -= count
    return sum(left)


@pytest.mark.parametrize("part", range(4))
def test_what_a_lane_can_do_in_time_it_does_in_time(part):
    """250 loads at a time, all there at the start, up to the lane's full rate."""
    rng = dice_for(part)
    for _ in range(250):
        loads = random_load(rng, PER_TICK, [0])
        assert not missed(loads), loads


@pytest.mark.parametrize("part", range(4))
def test_what_comes_later_is_done_in_time_too_up_to_the_full_rate(part):
    """250 loads at a time that come one after the other; whatever the oracle holds is held."""
    rng = dice_for(100 + part)
    for _ in range(250):
        loads = random_load(rng, PER_TICK, range(20))
        assert not missed(loads), loads


@pytest.mark.parametrize(("times", "loads"), [(1, 250), (10, 60), (100, 40)])
def test_longer_windows_hold_up_to_three_quarters_of_the_rate(times, loads):
    """Beyond the ten minutes in which the earliest deadline always goes first; background work keeps its floor."""
    rng = dice_for(200 + times)
    for _ in range(loads):
        load = random_load(rng, 0.75 * PER_TICK, range(20), times=times)
        assert not missed(load, below=True, each=max(1, times // 10)), load


def test_of_long_windows_that_fill_the_lane_few_are_missed():
    """Only who lets deadlines always go first could hold all, and would leave nothing to those without one."""
    rng = dice_for(7)
    loads = [random_load(rng, PER_TICK, range(20), times=100) for _ in range(40)]
    late = [missed(load, each=10) for load in loads]
    assert sum(map(bool, late)) <= 8
    assert sum(late) <= 0.01 * sum(jobs for load in loads for _, _, jobs in load)


# ---------------------------------------------------------------- beside deadlines

DAY = 86_400.0


@pytest.mark.parametrize("part", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("tenant_id", [1, 2])
def test_ten_beside_a_hundred_thousand_that_all_have_a_day(part, tenant_id):
    """The large batch needs so much of its window; the ten come with one of their own, as HTTP gives it to all."""
    pace = part * DAY / 100_000
    left, served, starts = {1: 100_000, 2: 10}, Served(), 0
    while left[2]:
        contenders = [
            Contender(1, deadline=DAY, ready=left[1]),
            Contender(2, tenant_id=tenant_id, deadline=DAY + 60, ready=left[2]),
        ]
        now = starts * pace
        split = shares(contenders, 1, now=now, seconds_per_permit=pace, served=served, scarce="starts")
        served = served.noting(contenders, split)
        left[split[0][0]] -= 1
        starts += 1
    assert starts <= 2 * 10


@pytest.mark.parametrize("part", [0.1, 0.3, 0.45])
def test_weights_come_true_among_those_that_have_a_day(part):
    """All three together need so much of their windows."""
    pace = part * DAY / 30_000
    left, total, served = dict.fromkeys(WEIGHTS, 10_000), Counter(), Served()
    for claim in range(600):
        contenders = [Contender(i, tenant_id=i, deadline=DAY + i, ready=left[i]) for i in WEIGHTS]
        split = shares(
            contenders, 10, tenants=WEIGHTS, now=claim * 10 * pace, seconds_per_permit=pace, served=served,
            scarce="starts",
        )  # fmt: skip
        served = served.noting(contenders, split)
        for batch_id, count in split:
            left[batch_id] -= count
            total[batch_id] += count
    near(total, {1: 1, 2: 2, 3: 3})


def test_what_has_no_deadline_goes_on_beside_what_presses():
    left, other, served = 60_000, 0, Served()
    for now in range(2_000):
        contenders = [
            Contender(1, tenant_id=1, deadline=DAY, ready=left),
            Contender(2, tenant_id=2, ready=50_000 - other),
        ]
        split = dict(shares(contenders, 4, now=float(now), seconds_per_permit=0.25, served=served, scarce="starts"))
        served = served.noting(contenders, list(split.items()))
        left -= split.get(1, 0)
        other += split.get(2, 0)
    assert other / 8_000 >= FLOOR
