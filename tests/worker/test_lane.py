"""A lane as a worker sees it: what it reserves, how it pauses, and what it learns and passes on."""

import asyncio
import time

import pytest

from promptmill.foresight import UNSEEN_ANSWER_TOKENS
from promptmill.outcome import Answer, Failure, Reason, Usage
from promptmill.settings import UpstreamConfig
from promptmill.store import lanes as store
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint
from tests.worker.workshop import chats, workshop
from worker.lane import FRESH_SECONDS, Lane, Lanes, Learned
from worker.limits import Limits
from worker.limits.memory import MemoryLimiter
from worker.probe import HANDFUL

NOW = 1_000.0


def busy(reason: Reason = Reason.RATE_LIMITED, retry_after: float | None = None) -> Failure:
    return Failure(reason, "slow down", retry_after_seconds=retry_after)


@pytest.fixture
async def lanes(sqlite_db, clock) -> Lanes:
    config = UpstreamConfig(name="up", url="http://up.invalid/v1", tokens_per_minute=60_000)
    return Lanes(sqlite_db, clock, lambda _upstream: config)


@pytest.fixture
async def lane(lanes) -> Lane:
    await store.ensure(lanes.db, "up", "m")
    await lanes.refresh([1])
    return lanes[1]


def end(lane: Lane, outcome, *, now: float = NOW, started_at: float | None = NOW - 1) -> None:
    lane.ended(outcome, started_at=started_at, reserved_tokens=100.0, now=now, rng=lambda: 0.5)


def test_what_is_reserved_is_neither_nothing_nor_max_tokens():
    learned = Learned()
    assert learned.reserve(10, None) == 10 + UNSEEN_ANSWER_TOKENS
    assert learned.reserve(10, 40_000) == 10 + UNSEEN_ANSWER_TOKENS
    assert learned.reserve(10, 20) == 30
    assert learned.reserve(0, 0) == 1
    learned.answered(1_000, 2.0)
    assert learned.reserve(10, 40_000) == 1_010


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (Limits(), None),
        (Limits(requests_per_minute=600), 0.1),
        (Limits(max_in_flight=4), 0.5),  # calls take two seconds
        (Limits(tokens_per_minute=6_000), 1.0),  # and a hundred tokens
        (Limits(requests_per_minute=600, tokens_per_minute=6_000, max_in_flight=4), 1.0),
    ],
)
def test_the_pace_of_a_lane_is_that_of_its_tightest_limit(lane, limits, seconds):
    lane.limits = limits
    assert lane.seconds_per_permit() == (0.1 if limits.requests_per_minute else None)  # nothing was learned yet
    lane.learned.answered(90, 2.0)
    lane.learned.reserve(10, None)
    assert lane.seconds_per_permit() == pytest.approx(seconds)


def test_a_wait_pauses_for_as_long_as_was_asked(lane):
    end(lane, busy(retry_after=7.0))
    assert lane.pause is not None
    assert (lane.pause.until, lane.pause.words) == (NOW + 7, "slow down")


def test_calls_that_were_out_together_are_refused_together_and_count_once(lane):
    end(lane, busy())
    first = lane.pause
    for _ in range(50):
        end(lane, busy(), started_at=NOW - 0.5)
    assert (lane.waits_in_a_row, lane.pause) == (1, first)


def test_a_success_ends_the_row(lane):
    end(lane, busy(retry_after=0.5))
    end(lane, busy(retry_after=0.5), now=NOW + 1, started_at=NOW + 0.9)
    assert lane.waits_in_a_row == 2
    end(lane, Answer(200, "", b"", Usage(1, 1)), now=NOW + 2)
    assert lane.waits_in_a_row == 0


def test_retry_after_0_over_and_over_is_answered_with_growing_patience(lane):
    pauses = []
    now = NOW
    for _ in range(6):
        lane.pause = None
        end(lane, busy(retry_after=0.0), now=now, started_at=now)
        pauses.append(lane.pause.until - now if lane.pause else 0.0)
        now += 10.0
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_single_503_pauses_nobody(lane):
    end(lane, busy(Reason.OVERLOADED))
    assert lane.pause is None


async def test_what_a_call_took_beyond_its_reservation_is_told_to_the_limiter(lane, clock):
    settled = []

    class Limiter(MemoryLimiter):
        async def settle(self, _buckets, *, ended, tokens) -> None:
            settled.append((ended, tokens))

    lane.started(100.0, 60.0, NOW)
    end(lane, Answer(200, "", b"", Usage(30, 200)))
    lane.started(100.0, 100.0, NOW)
    end(lane, Failure(Reason.UNAUTHORIZED, "no"))  # refused at the door: nothing was spent
    lane.started(100.0, 100.0, NOW)
    end(lane, Failure(Reason.STOPPED, "stopped"), started_at=None)
    lane.released()  # of the three, one is written
    await lane.tell(Limiter(clock), NOW)
    assert settled == [(1, (100 - 60) + (230 - 100) - 100 - 100)]


async def test_what_is_learned_is_there_for_the_next_worker(lanes, lane, sqlite_db):
    end(lane, Answer(200, "", b"", Usage(30, 200)))
    lanes.opened(lane)
    await lanes.close()
    (row,) = await store.read(sqlite_db)
    assert (row.state.value, row.completion_tokens) == ("open", 200.0)


async def test_a_halted_lane_stays_halted_for_the_next_worker(lanes, lane, sqlite_db):
    lanes.halt(lane, Failure(Reason.UNAUTHORIZED, "not with this key"), whole_upstream=True)
    await lanes.close()
    others = Lanes(sqlite_db, lanes.clock, lanes.config_for)
    await others.refresh([1])
    assert others[1].halted is not None
    assert others[1].halted.message == "not with this key"
    assert others[1].room(NOW) == 0


async def test_a_database_that_is_away_costs_only_what_was_learned(lanes, lane, caplog, monkeypatch):
    async def away(*_args, **_kwargs) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(store, "learned", away)
    monkeypatch.setattr(store, "opened", away)
    end(lane, Answer(200, "", b"", Usage(30, 200)))
    lanes.opened(lane)
    await lanes.close()
    assert "could not be written: ConnectionRefusedError" in caplog.text


async def test_a_known_lane_does_not_begin_with_more_tokens_than_a_minute_has(sqlite_db):
    """What a call takes is not known before the first one was claimed; 100 of 2,000 tokens are not started on it."""
    async with endpoint(lambda _: chat(completion_tokens=2_000)) as upstream:
        shop = workshop(sqlite_db, upstream.url, tokens_per_minute=60_000)
        batch = await shop.batch(chats(100))
        await store.opened(sqlite_db, lane_id=1, now=time.time())
        await store.learned(sqlite_db, lane_id=1, completion_tokens=2_000.0)
        stop = asyncio.Event()
        task = asyncio.create_task(shop.drain(batch).run(stop))
        await eventually(lambda: len(upstream.calls) >= HANDFUL)
        await asyncio.wait({task}, timeout=1.0)
        stop.set()
        await task
    assert len(upstream.calls) <= 2 * HANDFUL


async def test_a_lane_that_is_resumed_right_after_its_halt_works_again(lanes, lane, clock):
    """Even when this worker has not read the halt back before it was over."""
    refused = Failure(Reason.UNAUTHORIZED, "no such key", 401)
    lane.model.halted = refused
    lanes.halt(lane, refused, whole_upstream=False)
    await asyncio.gather(*lanes._chores)
    await store.resumed(lanes.db, lane_ids=[lane.id])
    clock.advance(FRESH_SECONDS)
    await lanes.refresh([lane.id])
    assert lane.halted is None


async def test_a_row_that_was_read_before_a_halt_does_not_end_it(lanes, lane, clock, monkeypatch):
    refused = Failure(Reason.UNAUTHORIZED, "no such key", 401)
    read = store.read

    async def slowly(db, lane_ids=None):
        rows = await read(db, lane_ids)
        if lane.halted is None:
            lane.model.halted = refused
            lanes.halt(lane, refused, whole_upstream=False)
            await asyncio.gather(*lanes._chores)
        return rows

    monkeypatch.setattr(store, "read", slowly)
    clock.advance(FRESH_SECONDS)
    await lanes.refresh([lane.id])
    assert lane.halted is refused
