"""A limit that nobody told us is found by what is refused: most of it is used, and few calls are refused."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from worker.learned_rate import BURST_SECONDS, LEAST_RATE, LearnedRate

STEP_SECONDS = 0.01
PAUSE_SECONDS = 1.0
MAX_IN_FLIGHT = 256


def bucket(rate: float, burst: float) -> Callable[[float], bool]:
    """An upstream that refills so many calls a second."""
    tokens, last = burst, 0.0

    def takes(now: float) -> bool:
        nonlocal tokens, last
        tokens, last = min(burst, tokens + (now - last) * rate), now
        if tokens < 1:
            return False
        tokens -= 1
        return True

    return takes


def window(rate: float, seconds: float) -> Callable[[float], bool]:
    """An upstream that counts in windows."""
    number, count = -1, 0

    def takes(now: float) -> bool:
        nonlocal number, count
        if int(now / seconds) != number:
            number, count = int(now / seconds), 0
        count += 1
        return count <= rate * seconds

    return takes


@dataclass
class Told:
    answered: int = 0
    refused: int = 0
    refused_later: int = 0  # after the first five seconds


def worked(takes: Callable[[float], bool], *, call_seconds: float, seconds: float, learned: LearnedRate) -> Told:
    """A lane with as much to do as it may: what became of its calls. It pauses for a second when it is refused."""
    told, ends, in_flight, paused_until = Told(), [], 0, 0.0
    for step in range(int(seconds / STEP_SECONDS)):
        now = step * STEP_SECONDS
        while ends and ends[0][0] <= now:
            _, was_taken, started_at = heapq.heappop(ends)
            in_flight -= 1
            if was_taken:
                told.answered += 1
            else:
                told.refused += 1
                told.refused_later += now > 5
                learned.refused(started_at, now)
                paused_until = now + PAUSE_SECONDS
        room = learned.room(now)
        free = MAX_IN_FLIGHT - in_flight
        count = 0 if now < paused_until else free if room is None else min(room, free)
        if count:
            learned.started(count, now)
            in_flight += count
            for _ in range(count):
                was_taken = takes(now)
                heapq.heappush(ends, (now + (call_seconds if was_taken else 0.003), was_taken, now))
    return told


@pytest.mark.parametrize(
    ("takes", "rate", "call_seconds", "part_used"),
    [
        (bucket(50, 50), 50, 0.4, 0.95),
        (bucket(50, 5), 50, 0.4, 0.65),
        (bucket(20, 4), 20, 0.001, 0.75),
        (bucket(10, 10), 10, 5.0, 0.85),
        (bucket(500, 100), 500, 0.1, 0.8),
        (bucket(2, 2), 2, 1.0, 0.85),
        (window(50, 1), 50, 0.4, 0.8),
    ],
)
def test_most_of_the_limit_is_used_and_little_is_refused(takes, rate, call_seconds, part_used):
    told = worked(takes, call_seconds=call_seconds, seconds=60, learned=LearnedRate())
    assert told.answered >= part_used * rate * 60
    assert told.refused_later <= 0.15 * (told.answered + told.refused_later)


def test_where_nothing_is_refused_there_is_no_limit():
    learned = LearnedRate()
    told = worked(lambda _: True, call_seconds=0.1, seconds=5, learned=learned)
    assert told.answered >= 0.9 * 5 * MAX_IN_FLIGHT / 0.1
    assert learned.rate is None


def test_a_limit_that_is_raised_is_found():
    slow, fast = bucket(20, 20), bucket(100, 20)
    told = worked(
        lambda now: slow(now) if now < 60 else fast(now), call_seconds=0.2, seconds=180, learned=LearnedRate()
    )
    assert told.answered >= 0.75 * (60 * 20 + 120 * 100)


def test_calls_that_were_out_together_tell_one_thing():
    learned = LearnedRate()
    learned.started(100, 10.0)
    for _ in range(60):
        learned.refused(10.0, 10.1)
    assert learned.rate == pytest.approx(0.9 * 40)
    learned.started(1, 11.0)
    learned.refused(10.0, 11.05)
    assert learned.rate == pytest.approx(0.9 * 40)


def test_having_been_idle_is_no_credit():
    learned = LearnedRate(rate=20.0)
    learned.started(2, 0.0)
    rate = learned.rate
    assert learned.room(3_600.0) == 1 + int(BURST_SECONDS * rate)
    learned.started(5, 0.0)
    assert learned.room(0.0) == 0
    assert learned.wait_seconds(0.0) == pytest.approx(7 / rate - BURST_SECONDS)


def test_it_never_comes_to_a_standstill():
    learned = LearnedRate(rate=1_000.0)
    for second in range(1_000):
        learned.started(2, float(second))
        learned.refused(float(second), second + 0.1)
        learned.refused(float(second), second + 0.1)
    assert learned.rate >= LEAST_RATE


def test_a_few_calls_that_were_refused_say_nothing_about_a_rate():
    """One 429 must not slow down whoever asks now and then."""
    learned = LearnedRate()
    learned.started(1, 10.0)
    learned.refused(10.0, 10.1)
    assert learned.rate is None


def test_what_was_claimed_before_the_rate_was_known_is_no_debt():
    learned = LearnedRate()
    learned.started(8, 10.0)
    for _ in range(4):
        learned.refused(10.0, 10.01)
    learned.started(50, 10.02)  # they had their permits
    for _ in range(50):
        learned.refused(10.02, 10.03)
    assert learned.wait_seconds(10.03) <= 1.0
