"""Calls on their way: what a refusal means for its job and for its lane, and that waiting costs no attempt."""

import asyncio
import base64
import time

import pytest

from promptmill.job import State
from promptmill.outcome import Reason
from promptmill.store import batches, lanes
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint, never, refusal, text_of
from tests.worker.raw_server import http
from tests.worker.workshop import KEY, chats, workshop
from worker import attempt as attempt_module
from worker.probe import HANDFUL


def transcription(file: str, **others: str) -> dict[str, str]:
    return {"model": "whisper", "file": file, **others}


TRANSCRIPT = http("200 OK", b'{"text": "hello"}', "Content-Type: application/json")


# ---------------------------------------------------------------- failures of one job


async def test_a_job_that_always_breaks_fails_after_its_attempts_with_the_upstreams_words(sqlite_db):
    async with endpoint(lambda _: refusal("500 Oops", "the disk is on fire")) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_attempts=3)
        batch = await shop.batch(chats(1))
        drain = await shop.work(batch)
    (result,) = await shop.results(batch)
    assert (result.state, result.attempts, result.error_code) == (State.FAILED, 3, "server_error")
    assert "the disk is on fire" in (result.error_message or "")
    assert await shop.ledger(batch) == {"server_error": 3}
    assert (drain.counts.retried, drain.counts.failed, (await shop.now(batch)).retried) == (2, 1, 2)


async def test_a_403_among_successes_is_a_failed_job_and_nothing_more(sqlite_db):
    def answers(call) -> bytes:
        return refusal("403 Forbidden", "too long for you") if text_of(call) == "7" else chat()

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(30))
        drain = await shop.work(batch)
    results = await shop.results(batch)
    assert [result.position for result in results if result.state is State.FAILED] == [7]
    assert results[7].error_code == "forbidden"
    assert not drain.halts()


async def test_a_redirect_to_another_host_halts_and_the_key_stays_home(sqlite_db):
    async with endpoint(lambda _: chat()) as elsewhere:
        moved = http("307 Temporary Redirect", b"", f"Location: {elsewhere.url}/chat/completions")
        async with endpoint(lambda _: moved) as upstream:
            shop = workshop(sqlite_db, upstream.url)
            batch = await shop.batch(chats(1))
            drain = await shop.work(batch)
        assert not elsewhere.calls
    (halt,) = drain.halts().values()
    assert halt.reason is Reason.REDIRECTED
    assert f"redirects to {elsewhere.url.removesuffix('/v1')}, where the key does not go" in halt.message
    assert KEY not in halt.message


# ---------------------------------------------------------------- waiting is not failing


async def test_a_429_pauses_the_lane_for_as_long_as_it_says_and_costs_no_attempt(sqlite_db):
    came: list[float] = []

    def answers(_) -> bytes:
        came.append(time.monotonic())
        return chat() if len(came) > 1 else refusal("429 Too Many Requests", "slow down", "Retry-After: 1")

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=1, max_attempts=1)
        batch = await shop.batch(chats(3))
        await shop.work(batch)
    assert 1.0 <= came[1] - came[0] < 5.0
    assert [result.attempts for result in await shop.results(batch)] == [1, 1, 1]
    assert await shop.ledger(batch) == {"succeeded": 3, "rate_limited": 1}
    assert (await shop.now(batch)).retried == 0
    (lane,) = await lanes.read(sqlite_db)
    assert lane.paused_until is not None  # for people to see


async def test_a_503_costs_no_attempt(sqlite_db):
    async with endpoint(lambda _: chat() if len(upstream.calls) > 4 else refusal("503 Busy")) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_attempts=1)
        batch = await shop.batch(chats(1))
        await shop.work(batch)
    (result,) = await shop.results(batch)
    assert (result.state, result.attempts) == (State.SUCCEEDED, 1)
    assert await shop.ledger(batch) == {"succeeded": 1, "overloaded": 4}


async def test_a_429_that_says_retry_after_0_is_not_hammered(sqlite_db):
    async with endpoint(lambda _: refusal("429 Too Many Requests", "no", "Retry-After: 0")) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(20))
        stop = asyncio.Event()
        task = asyncio.create_task(shop.drain(batch).run(stop))
        await eventually(lambda: upstream.calls)
        await asyncio.wait({task}, timeout=2.0)
        stop.set()
        await task
    assert len(upstream.calls) < 100


# ---------------------------------------------------------------- the lane


async def test_a_call_that_never_ends_does_not_hold_back_the_others(sqlite_db):
    """The first one is answered when all others are done."""
    rest_is_done = asyncio.Event()

    async def answers(call) -> bytes:
        if text_of(call) == "0":
            await rest_is_done.wait()
        elif len(upstream.calls) == 60:
            rest_is_done.set()
        return chat()

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=10)
        batch = await shop.batch(chats(60))
        started = time.monotonic()
        await shop.work(batch)
    assert time.monotonic() - started < 10.0


async def test_a_model_that_only_thinks_gets_more_than_a_handful_after_three_seconds(sqlite_db):
    async with endpoint(never) as upstream:
        shop = workshop(sqlite_db, upstream.url, grace_seconds=0.0)
        batch = await shop.batch(chats(40))
        stop = asyncio.Event()
        task = asyncio.create_task(shop.drain(batch).run(stop))
        await eventually(lambda: len(upstream.calls) == HANDFUL)
        started = time.monotonic()
        await eventually(lambda: len(upstream.calls) == 40)
        assert time.monotonic() - started > 2.5
        stop.set()
        await task


@pytest.mark.parametrize(
    ("status", "reason"), [("401 Unauthorized", Reason.UNAUTHORIZED), ("402 Payment Required", Reason.PAYMENT_REQUIRED)]
)
async def test_a_wrong_key_halts_at_once_and_leaves_every_job_to_be_resumed(db, status, reason):
    async with endpoint(lambda _: refusal(status, "not with this key")) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(300))
        drain = await shop.work(batch)
        (halt,) = drain.halts().values()
        assert (halt.reason, halt.message) == (reason, "not with this key")
        assert len(upstream.calls) <= HANDFUL
        assert await shop.unfinished(batch) == {State.READY: 300}
        assert await shop.attempts_so_far(batch) == [0] * 300
        (lane,) = await lanes.read(db)
        assert (lane.state.value, lane.reason) == ("halted", "not with this key")

        await lanes.resumed(db, lane_ids=[lane.id])
        upstream.answers = lambda _: chat()
        await shop.work(batch)
    assert (await shop.now(batch)).succeeded == 300


async def test_a_model_that_is_not_there_halts_its_own_lane_only(sqlite_db):
    def answers(call) -> bytes:
        return refusal("404 Not Found", "no such model") if b"missing" in call.body else chat()

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        lines = [line for n in range(50) for line in chats(1, model="missing" if n % 2 else "there", first=n)]
        batch = await shop.batch(lines)
        drain = await shop.work(batch)
    names = await batches.lane_names(sqlite_db, batch.id)
    assert [names[lane_id][1] for lane_id in drain.halts()] == ["missing"]
    assert sum(b"missing" in call.body for call in upstream.calls) <= HANDFUL
    assert (await shop.now(batch)).succeeded == 25
    assert await shop.unfinished(batch) == {State.READY: 25}


async def test_a_key_that_worked_halts_after_several_refusals_in_a_row(sqlite_db):
    """Somebody revoked it, or the money ran out, in the middle."""
    async with endpoint(lambda _: chat() if len(upstream.calls) <= 30 else refusal("401 No", "revoked")) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=4)
        batch = await shop.batch(chats(200))
        drain = await shop.work(batch)
    assert [halt.message for halt in drain.halts().values()] == ["revoked"]
    assert len(upstream.calls) <= 30 + 5 + 4
    assert await shop.unfinished(batch) == {State.READY: 170}
    assert (await shop.now(batch)).failed == 0


async def test_calls_that_are_held_leave_their_places_to_others(sqlite_db):
    """Two places, and two refusals that may be the key's fault: who else is to tell?"""

    def answers(_) -> bytes:
        return refusal("401 No", "not you") if 30 < len(upstream.calls) <= 32 else chat()

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=2)
        batch = await shop.batch(chats(60))
        drain = await shop.work(batch)
    assert not drain.halts()
    batch = await shop.now(batch)
    assert (batch.succeeded, batch.failed) == (58, 2)


async def test_jobs_that_are_held_when_a_stop_comes_are_given_back(sqlite_db):
    """Two of the handful were answered 404; whether that is the model's fault nobody knows yet."""

    async def answers(call) -> bytes | None:
        return refusal("404 Not Found") if text_of(call) in "01" else await never(call)

    async with endpoint(answers) as upstream:
        shop = workshop(sqlite_db, upstream.url, grace_seconds=0.0)
        batch = await shop.batch(chats(8))
        stop, drain = asyncio.Event(), shop.drain(batch)
        task = asyncio.create_task(drain.run(stop))
        await eventually(lambda: len(upstream.calls) == 8 and upstream.in_flight == 6)
        stop.set()
        await task
    assert await shop.unfinished(batch) == {State.READY: 8}
    assert await shop.ledger(batch) == {"stopped": 6, "model_not_available": 2}


async def test_a_call_that_is_cancelled_before_its_first_step_gives_its_job_back(sqlite_db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(3))
        drain = shop.drain(batch)
        start = drain._calls.start

        def start_and_abandon(*args, **kwargs) -> None:
            start(*args, **kwargs)
            drain.abandon()

        drain._calls.start = start_and_abandon
        stop = asyncio.Event()
        task = asyncio.create_task(drain.run(stop))
        await eventually(lambda: drain.counts.waits >= 3)
        stop.set()
        await task
    assert drain.counts.in_flight == 0
    assert await shop.unfinished(batch) == {State.READY: 3}


# ---------------------------------------------------------------- files that go with a job


async def test_a_file_is_sent_as_it_was_when_the_line_was_taken_in(sqlite_db, tmp_path):
    (tmp_path / "talk.wav").write_bytes(bytes(range(256)) * 8000)  # more than a slice
    async with endpoint(lambda _: TRANSCRIPT) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch([transcription("talk.wav", language="en")], folder=tmp_path)
        (tmp_path / "talk.wav").unlink()
        await shop.work(batch)
    (call,) = upstream.calls
    assert call.headers["content-type"].startswith("multipart/form-data")
    assert bytes(range(256)) * 8000 in call.body
    assert b'filename="talk.wav"' in call.body
    assert (await shop.now(batch)).succeeded == 1


async def test_a_file_may_stand_in_the_line_itself(sqlite_db):
    sound = bytes(range(256))
    uri = "data:audio/wav;base64," + base64.b64encode(sound).decode()
    async with endpoint(lambda _: TRANSCRIPT) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch([transcription(uri)])
        await shop.work(batch)
    (result,) = await shop.results(batch)
    assert result.state is State.SUCCEEDED, result.error_message
    assert sound in upstream.calls[0].body


async def test_a_link_is_passed_on(sqlite_db):
    async with endpoint(lambda _: TRANSCRIPT) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch([transcription("https://example.com/talk.mp3")])
        await shop.work(batch)
    assert b"https://example.com/talk.mp3" in upstream.calls[0].body


async def test_a_database_that_is_away_when_the_file_is_read_costs_no_attempt(sqlite_db, tmp_path, monkeypatch):
    (tmp_path / "talk.wav").write_bytes(b"sound")
    attached, broken = attempt_module.BatchContexts.attached, []

    async def break_once(self, *args):
        if not broken:
            broken.append(1)
            raise ConnectionResetError
        return await attached(self, *args)

    monkeypatch.setattr(attempt_module.BatchContexts, "attached", break_once)
    async with endpoint(lambda _: TRANSCRIPT) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_attempts=1)
        batch = await shop.batch([transcription("talk.wav")], folder=tmp_path)
        await shop.work(batch)
    assert broken
    (result,) = await shop.results(batch)
    assert (result.state, result.attempts) == (State.SUCCEEDED, 1)
