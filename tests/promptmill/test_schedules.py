"""When a schedule fires, through changing clocks; what is due after a silence; and what a fire does beside another."""

import time
from datetime import UTC, datetime
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.cron import NAMED, expression
from promptmill.errors import UsageError
from promptmill.schedules import (
    Action,
    Missed,
    Overlap,
    Schedule,
    carried_out_at,
    check,
    due,
    fires,
    first_decided,
    moment,
    next_fire,
    overlapping,
    time_zone,
)

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def cron(text, zone="UTC", **more):
    return Schedule(id="sched_1", cron=text, zone=zone, **more)


def at(text, zone="UTC"):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


CLOCKS = [
    # Spring: the clock goes from 02:00 to 03:00.
    (BERLIN, "2026-03-29 00:30", "0 * * * *", "29 01:00+01 29 03:00+02 29 04:00+02"),
    (BERLIN, "2026-03-28 12:00", "30 2 * * *", "29 03:00+02 30 02:30+02 31 02:30+02"),
    (BERLIN, "2026-03-29 01:30", "*/15 * * * *", "29 01:45+01 29 03:00+02 29 03:15+02"),
    (BERLIN, "2026-03-28 12:00", "30 1 * * *", "29 01:30+01 30 01:30+02"),
    (BERLIN, "2026-03-28 12:00", "0 3 * * *", "29 03:00+02 30 03:00+02"),
    (BERLIN, "2026-03-29 01:00", "15 2-3 * * *", "29 03:00+02 29 03:15+02 30 02:15+02"),
    (BERLIN, "2026-03-29 01:00", "0,30 2 * * *", "29 03:00+02 30 02:00+02 30 02:30+02"),
    (BERLIN, "2026-03-28 23:30", "0 */2 * * *", "29 00:00+01 29 04:00+02 29 06:00+02"),
    (NEW_YORK, "2026-03-08 00:30", "0 * * * *", "08 01:00-05 08 03:00-04 08 04:00-04"),
    (NEW_YORK, "2026-03-07 12:00", "30 2 * * *", "08 03:00-04 09 02:30-04"),
    (NEW_YORK, "2026-03-08 01:30", "*/15 * * * *", "08 01:45-05 08 03:00-04 08 03:15-04"),
    # Autumn: Berlin's 02:00 to 03:00 comes twice, New York's 01:00 to 02:00.
    (BERLIN, "2026-10-25 00:30", "0 * * * *", "25 01:00+02 25 02:00+02 25 02:00+01 25 03:00+01"),
    (BERLIN, "2026-10-24 12:00", "30 2 * * *", "25 02:30+02 26 02:30+01 27 02:30+01"),
    (BERLIN, "2026-10-25 02:30", "*/15 * * * *", "25 02:45+02 25 02:00+01 25 02:15+01 25 02:30+01 25 02:45+01"),
    (BERLIN, "2026-10-24 12:00", "0 3 * * *", "25 03:00+01 26 03:00+01"),
    (BERLIN, "2026-10-24 23:30", "0 */2 * * *", "25 00:00+02 25 02:00+02 25 02:00+01 25 04:00+01"),
    (NEW_YORK, "2026-11-01 00:30", "0 * * * *", "01 01:00-04 01 01:00-05 01 02:00-05"),
    (NEW_YORK, "2026-10-31 12:00", "30 2 * * *", "01 02:30-05 02 02:30-05"),
    (NEW_YORK, "2026-10-31 12:00", "30 1 * * *", "01 01:30-04 02 01:30-05"),
    (NEW_YORK, "2026-11-01 01:30", "*/15 * * * *", "01 01:45-04 01 01:00-05 01 01:15-05 01 01:30-05"),
    # Half an hour, at midnight, a whole day, and never.
    ("Australia/Lord_Howe", "2026-10-03 12:00", "15 2 * * *", "04 02:30+11 05 02:15+11"),
    ("Australia/Lord_Howe", "2026-10-03 23:00", "0 */6 * * *", "04 00:00+10 04 06:00+11 04 12:00+11"),
    ("Australia/Lord_Howe", "2026-10-04 01:00", "*/10 2 * * *", "04 02:30+11 04 02:40+11 04 02:50+11 05 02:00+11"),
    ("Australia/Lord_Howe", "2026-04-05 00:00", "0 */6 * * *", "05 06:00+10 05 12:00+10"),
    ("Australia/Lord_Howe", "2026-04-05 01:20", "*/15 1 * * *", "05 01:30+11 05 01:45+11 05 01:30+10 05 01:45+10"),
    ("Australia/Lord_Howe", "2026-04-05 01:00", "*/20 2 * * *", "05 02:00+10 05 02:20+10 05 02:40+10"),
    ("Pacific/Chatham", "2026-04-05 02:40", "*/25 2 * * *", "05 02:50+13 05 02:50+12 06 02:00+12"),
    ("America/Santiago", "2026-09-05 12:00", "0 0 * * *", "06 01:00-03 07 00:00-03"),
    ("Pacific/Apia", "2011-12-29 12:00", "0 9 * * *", "31 00:00+14 31 09:00+14"),
    ("Asia/Kolkata", "2026-03-28 12:00", "30 2 * * *", "29 02:30+05 30 02:30+05"),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "after", "text", "expected"), CLOCKS)
def test_changing_clocks(zone, after, text, expected):
    schedule, count = cron(text, zone), len(expected.split()) // 2
    times = [datetime.fromtimestamp(t, ZoneInfo(zone)) for t in islice(fires(schedule, after=at(after, zone)), count)]
    assert " ".join(f"{t:%d %H:%M%z}"[:-2] for t in times) == expected


@pytest.mark.parametrize(("zone", "day"), [(BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-11-01")])
@pytest.mark.parametrize(
    "text", ["0 * * * *", "30 2 * * *", "*/15 * * * *", "30 1 * * *", "15 2-3 * * *", "0 1,2 * * *"]
)
def test_where_one_asks_from_makes_no_difference(zone, day, text):
    """Every process asks from the last fire it knows; all must come to the same."""
    begin = at(f"{day} 00:00", zone)
    end = begin + 30 * 3_600
    whole = list(fires(cron(text, zone, ends_at=end), after=begin))
    for after in range(int(begin), int(end), 600):
        expected = next((t for t in whole if t > after), None)
        assert next_fire(cron(text, zone, ends_at=end), after=after) == expected


@given(st.sampled_from([BERLIN, NEW_YORK, "UTC", "Australia/Lord_Howe"]),
       st.sampled_from(["0 * * * *", "30 2 * * *", "*/7 1-3 * * *", "0 9 * * 1-5", "@monthly", "5 4 29 2 *"]),
       st.floats(1.7e9, 2.0e9))  # fmt: skip
def test_fires_are_later_and_in_order(zone, text, after):
    some = list(islice(fires(cron(text, zone), after=after), 5))
    assert some[0] > after
    assert some == sorted(set(some))
    assert next_fire(cron(text, zone), after=some[1]) == some[2]


def test_start_is_within_and_end_is_without():
    ten = at("2026-05-01 10:00")
    schedule = cron("0 * * * *", starts_at=ten, ends_at=ten + 7_200)
    assert list(fires(schedule, after=0.0)) == [ten, ten + 3_600]
    assert list(fires(cron("0 * * * *", starts_at=ten + 0.5, ends_at=ten + 3_600.5), after=0.0)) == [ten + 3_600]


def test_one_time():
    schedule = Schedule(id="s", at=1_000.5)
    assert list(fires(schedule, after=0)) == [1_000.5]
    assert list(fires(schedule, after=1_000.5)) == []
    assert first_decided(schedule, now=2_000.0) < 1_000.5
    assert due(schedule, last_fire=first_decided(schedule, now=1_000.0), now=1_000.5).run == (1_000.5,)
    assert first_decided(cron("* * * * *"), now=2_000.0) == 2_000.0


@pytest.mark.parametrize("name", NAMED)
def test_named_expressions(name):
    assert next_fire(cron(name.upper()), after=0.0) == next_fire(cron(NAMED[name]), after=0.0)


WRONG = [
    (cron("* * * *"), "has 4 fields; a cron expression has 5 (minute hour day-of-month month day-of-week)"),
    (cron("0 * * * * *"), "seconds are not among them"),
    (cron(""), "has 0 fields"),
    (cron("61 * * * *"), "bad minute"),
    (cron("0 9 * * FOO"), "bad day-of-week"),
    (cron("0 0 31 2 *"), "bad day-of-month"),
    (cron("0 0 LW * */7"), "never fires"),
    (cron("@reboot"), "is not known; there are @hourly"),
    (cron("@daily", "Mars/Base"), "'Mars/Base' is no time zone; give a name of the IANA database"),
    (cron("@daily", "Europe"), "is no time zone"),
    (cron("@daily", "../etc/passwd"), "is no time zone"),
    (cron("@daily", ""), "is no time zone"),
    (cron("@daily", "\0"), "is no time zone"),
    (cron("*/" + "9" * 5_000 + " * * * *"), "has 5,010 characters; 256 are the most"),
    (cron("@daily", starts_at=50.0, ends_at=50.0), "would end before it starts"),
    (cron("@daily", ends_at=500.0), "would never fire"),
    (cron("* * * * *", ends_at=990.0), "would never fire"),  # what passed is over, even within the grace
    (cron("@daily", grace_seconds=8 * 86_400.0), "604,800 at most"),
    (cron("@daily", ends_at=1e30), "times are unix seconds"),
    (Schedule(id="s", at=float("nan")), "times are unix seconds"),
    (cron("@daily", catch_up=0), "from 1 to 10,000"),
    (cron("@daily", jitter_seconds=-1.0), "not less than 0"),
    (cron("*/5 * * * *", jitter_seconds=300.0), "fires every 300 s; give less than that"),
    (Schedule(id="s"), 'either "cron" (an expression) or "at" (one time)'),
    (Schedule(id="s", cron="@daily", at=5.0), 'either "cron"'),
    (Schedule(id="s", at=900.0), "its times lie in the past"),
    (cron("0 0 29 2 *", starts_at=253_370_764_799.0), "would never fire"),  # the calendar ends before
]


@pytest.mark.parametrize(("schedule", "words"), WRONG, ids=[words[:30] for _, words in WRONG])
def test_what_is_wrong_is_said(schedule, words):
    with pytest.raises(UsageError) as caught:
        check(schedule, now=1_000.0)
    assert words in str(caught.value)


@given(st.text(max_size=20) | st.from_regex(r"[0-9*/,\-L#@ ]{1,20}", fullmatch=True))
def test_any_text_is_an_expression_or_an_error(text):
    try:
        expression(text)
    except UsageError:
        return
    assert next_fire(cron(text), after=0.0) is not None


@given(st.text(max_size=20))
def test_any_text_is_a_zone_or_an_error(text):
    try:
        time_zone(text)
    except UsageError:
        return


@pytest.mark.parametrize("schedule", [cron("*/5 * * * *", BERLIN, jitter_seconds=299.0), Schedule(id="s", at=950.0)])
def test_what_is_right_passes(schedule):
    check(schedule, now=1_000.0)


# ---------------------------------------------------------------- after a silence

HOUR = 3_600.0
SILENCES = [
    # policy, bound, silence until (hours), runs (hours), left out
    ("nothing due", Missed.ALL, 9, 0.5, [], 0),
    ("on time", Missed.SKIP, 9, 1, [1], 0),
    ("within grace", Missed.SKIP, 9, 1.01, [1], 0),
    ("missed, skip", Missed.SKIP, 9, 3.5, [], 3),
    ("missed, skip, but one is on time", Missed.SKIP, 9, 3, [3], 2),
    ("missed, once", Missed.ONCE, 9, 3.5, [3], 2),
    ("missed, once, and one is on time", Missed.ONCE, 9, 3, [3], 2),
    ("missed, all", Missed.ALL, 9, 3.5, [1, 2, 3], 0),
    ("missed, all, and one is on time", Missed.ALL, 9, 3, [1, 2, 3], 0),
    ("missed, all, with a bound", Missed.ALL, 2, 5.5, [4, 5], 3),
    ("missed, all, a bound of one", Missed.ALL, 1, 5.5, [5], 4),
]


@pytest.mark.parametrize(("policy", "bound", "until", "runs", "left_out"), [c[1:] for c in SILENCES],
                         ids=[c[0] for c in SILENCES])  # fmt: skip
def test_after_a_silence(policy, bound, until, runs, left_out):
    found = due(cron("0 * * * *", missed=policy, catch_up=bound), last_fire=0.0, now=until * HOUR)
    assert found.run == tuple(hour * HOUR for hour in runs)
    assert found.left_out == left_out
    assert found.decided_until == int(until) * HOUR


def test_no_grace_is_so_small_that_nobody_looks_within_it():
    found = due(cron("0 * * * *", missed=Missed.SKIP, grace_seconds=0.0), last_fire=0.0, now=HOUR + 6.0)
    assert found.run == (HOUR,)


def test_a_long_grace_lets_no_more_run_than_the_bound():
    found = due(cron("* * * * *", grace_seconds=HOUR, catch_up=7), last_fire=0.0, now=HOUR)
    assert found.run == tuple(HOUR - 60.0 * n for n in reversed(range(7)))
    assert found.left_out == 53


@given(st.lists(st.floats(0.001, 40), min_size=1, max_size=9), st.sampled_from(Missed), st.floats(0, 3_000))
def test_looking_often_or_seldom_no_fire_is_run_twice(waits, policy, jitter):
    schedule = cron("0 * * * *", missed=policy, jitter_seconds=jitter, catch_up=10_000)
    decided, now, run, left_out = 0.0, 0.0, [], 0
    for wait in waits:
        now += wait * HOUR
        found = due(schedule, last_fire=decided, now=now)
        assert found.decided_until >= decided
        assert all(carried_out_at(schedule, fire) <= now for fire in found.run)
        decided = found.decided_until
        run += found.run
        left_out += found.left_out
    assert run == sorted(set(run))
    passed = list(takewhile(lambda t: carried_out_at(schedule, t) <= now, fires(schedule, after=0.0)))
    if policy is Missed.ALL:
        assert run == passed
    assert len(run) + left_out <= len(passed)  # of very many, at least so many


@pytest.mark.parametrize("policy", Missed)
def test_a_year_of_missed_minutes_is_looked_at_from_its_end(policy):
    began = time.process_time()
    found = due(cron("* * * * *", BERLIN, missed=policy), last_fire=1.7e9, now=1.7e9 + 365 * 86_400 + 30)
    assert time.process_time() - began < 1.0
    assert len(found.run) == (100 if policy is Missed.ALL else 1)
    assert found.left_out > 1_000
    far = due(cron("@yearly", missed=policy, catch_up=2), last_fire=0.0, now=at("2026-07-01 00:00"))
    assert [datetime.fromtimestamp(t, UTC).year for t in far.run] == {"skip": [], "once": [2026], "all": [2025, 2026]}[
        policy
    ]


# ---------------------------------------------------------------- jitter and overlap


@given(st.floats(0.001, 3_599), st.integers(0, 10**6))
def test_jitter_is_bounded_and_the_same_everywhere(jitter, hour):
    schedule = cron("0 * * * *", jitter_seconds=jitter)
    when = carried_out_at(schedule, hour * HOUR)
    assert hour * HOUR <= when < hour * HOUR + jitter + 1e-3
    assert when == carried_out_at(cron("0 * * * *", jitter_seconds=jitter), hour * HOUR)


def test_jitter_spreads():
    delays = [carried_out_at(cron("0 * * * *", jitter_seconds=600.0), h * HOUR) - h * HOUR for h in range(1_000)]
    assert 270 < sum(delays) / len(delays) < 330
    assert carried_out_at(Schedule(id="other", jitter_seconds=600.0), 0.0) != delays[0]


OVERLAPS = [
    (Overlap.ALLOW, False, 0, Action.RUN),
    (Overlap.ALLOW, True, 0, Action.RUN),
    (Overlap.ALLOW, True, 2, Action.RUN),  # they waited before it was allowed
    (Overlap.SKIP, False, 0, Action.RUN),
    (Overlap.SKIP, True, 0, Action.SKIP),
    (Overlap.QUEUE, False, 0, Action.RUN),
    (Overlap.QUEUE, True, 0, Action.WAIT),
    (Overlap.QUEUE, False, 1, Action.WAIT),  # behind the one that waits
    (Overlap.QUEUE, True, 3, Action.SKIP),
]


@pytest.mark.parametrize(("overlap", "active", "waiting", "expected"), OVERLAPS)
def test_beside_the_batch_of_the_fire_before(overlap, active, waiting, expected):
    schedule = cron("0 * * * *", overlap=overlap, catch_up=3)
    assert overlapping(schedule, previous_is_active=active, waiting=waiting) is expected


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-12-01T02:00", BERLIN, "2026-12-01 01:00"),
        ("2026-12-01 02:00:30", "UTC", "2026-12-01 02:00:30"),
        ("2026-12-01T02:00-05:00", BERLIN, "2026-12-01 07:00"),
        ("2026-12-01T02:00Z", BERLIN, "2026-12-01 02:00"),
        ("2026-10-25T02:30", BERLIN, "2026-10-25 00:30"),  # the first of the two
    ],
)
def test_a_moment_is_what_a_clock_in_the_zone_shows(text, zone, expected):
    assert moment(text, zone) == at(expected)


def test_what_is_no_moment_is_said():
    with pytest.raises(UsageError, match="'noon' is no time"):
        moment("noon", BERLIN)
    with pytest.raises(UsageError, match="'Mars' is no time zone"):
        moment("2026-12-01T02:00", "Mars")


def test_of_what_is_left_out_the_last_is_told():
    found = due(
        cron("0 * * * *", missed=Missed.ALL, catch_up=2), last_fire=at("2026-06-01 00:00"), now=at("2026-06-01 05:30")
    )
    assert (found.left_out, found.last_left_out) == (3, at("2026-06-01 03:00"))
    assert due(cron("0 * * * *"), last_fire=0.0, now=1.0).last_left_out is None
