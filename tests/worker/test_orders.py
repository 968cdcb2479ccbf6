"""A drain obeys at once: pauses, a start that is not yet, a cancelled batch, a canary, a budget."""

import asyncio
import time
from dataclasses import dataclass, field, replace

import pytest
import sqlalchemy as sa

from promptmill.handling import AfterCanary, Handling
from promptmill.job import BatchState, State
from promptmill.settings import PriceConfig
from promptmill.store import aborts, control, lanes, pauses
from promptmill.store.pauses import EVERYTHING, What
from promptmill.tables import batches as batch_rows
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint, refusal, text_of
from tests.worker.raw_server import serve
from tests.worker.workshop import chats, workshop
from worker.lane import PAUSED_BY_HAND

#: What an order may take to act, from its commit on.
AT_ONCE_SECONDS = 1.0


async def pause_of(shop, batch) -> str | None:
    """Why the batch is paused; "by hand" where nobody says, None where it is not."""
    found = (await pauses.of_batches(shop.db, [batch.id])).get(batch.id)
    return None if found is None else found.reason or "by hand"


# ---------------------------------------------------------------- pauses


@pytest.mark.parametrize("what", [What.BATCH, What.ALL])
async def test_a_pause_stops_new_calls_within_a_second_and_what_is_out_is_kept(sqlite_db, what):
    came: list[float] = []

    async def slowly(_) -> bytes:
        came.append(time.monotonic())
        await asyncio.sleep(0.02)
        return chat()

    async with endpoint(slowly) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=10)
        batch = await shop.batch(chats(5_000))
        which = batch.id if what is What.BATCH else EVERYTHING
        async with shop.serving() as drain:
            await eventually(lambda: len(came) >= 30)
            await pauses.pause(sqlite_db, what, which, now=shop.clock())
            paused_at = time.monotonic()
            await asyncio.sleep(AT_ONCE_SECONDS + 0.3)
            assert came[-1] < paused_at + AT_ONCE_SECONDS
            assert len(came) == drain.counts.succeeded
            if what is What.ALL:
                await eventually(lambda: {lane.waiting_for for lane in drain.lanes} == {PAUSED_BY_HAND})
            await pauses.resume(sqlite_db, what, which, now=shop.clock())
            drain.wake()
            await eventually(lambda: len(came) > drain.counts.succeeded)
            await pauses.pause(sqlite_db, What.BATCH, batch.id, now=shop.clock())


async def test_a_batch_whose_time_has_not_come_waits_and_the_drain_with_it(sqlite_db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(2), handling=Handling(not_before=time.time() + 0.9))
        task = asyncio.create_task(shop.work(batch))
        done, _ = await asyncio.wait({task}, timeout=0.6)
        assert not done
        assert not upstream.calls
        await task
        assert len(upstream.calls) == 2


async def test_a_drain_that_works_one_batch_ends_when_it_is_paused(sqlite_db):
    """With jobs that wait for their next try, too: a person has to say when."""
    async with endpoint(lambda call: refusal("500 Oops") if text_of(call) == "0" else chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=1)
        batch = await shop.batch(chats(50))
        task = asyncio.create_task(shop.work(batch))
        await eventually(lambda: len(upstream.calls) >= 1)
        await pauses.pause(sqlite_db, What.BATCH, batch.id, now=shop.clock())
        async with asyncio.timeout(5):
            await task
    assert (await shop.now(batch)).state is BatchState.IN_PROGRESS
    assert await shop.unfinished(batch)


# ---------------------------------------------------------------- cancelling


@dataclass
class Silent:
    """An endpoint that never answers, and sees who hangs up."""

    came: list[str] = field(default_factory=list)
    hung_up: list[str] = field(default_factory=list)

    async def converse(self, peer) -> None:
        text = text_of(await peer.read_request())
        self.came.append(text)
        await peer.until_closed()
        self.hung_up.append(text)


async def test_a_cancelled_batch_has_its_calls_aborted_where_that_was_asked(db):
    silent = Silent()
    async with serve(silent.converse) as server:
        shop = workshop(db, server.url)
        batch, other = await shop.batch(chats(20)), await shop.batch(chats(1, first=100))
        async with shop.serving():
            await eventually(lambda: len(silent.came) == 8)
            await control.cancel(db, batch_id=batch.id, abort=True, now=shop.clock())
            asked_at = time.monotonic()
            await eventually(lambda: len(silent.hung_up) == 7)
            assert time.monotonic() - asked_at < AT_ONCE_SECONDS
            await eventually(lambda: is_in(shop, batch, BatchState.CANCELLED))
            assert "100" not in silent.hung_up
            await control.cancel(db, batch_id=other.id, abort=True, now=shop.clock())
            await eventually(lambda: is_in(shop, other, BatchState.CANCELLED))
    now = await shop.now(batch)
    assert (now.cancelled, now.total) == (20, 20)
    results = await shop.results(batch)
    assert {(result.state, result.error_code) for result in results} == {(State.CANCELLED, "batch_cancelled")}
    assert await shop.ledger(batch) == {"batch_cancelled": 7}  # the calls that were out


async def test_a_single_job_has_its_call_aborted_where_that_was_asked(db):
    silent = Silent()
    async with serve(silent.converse) as server:
        shop = workshop(db, server.url)
        batch = await shop.batch(chats(2))
        async with shop.serving():
            await eventually(lambda: len(silent.came) == 2)
            assert await aborts.ask(db, (batch.id, 0), now=shop.clock())
            asked_at = time.monotonic()
            await eventually(lambda: silent.hung_up == ["0"])
            assert time.monotonic() - asked_at < AT_ONCE_SECONDS
            (result,) = await eventually(lambda: shop.results(batch))
            assert (result.state, result.error_code) == (State.CANCELLED, "job_cancelled")
            assert silent.hung_up == ["0"]
    assert (await shop.ledger(batch))["job_cancelled"] == 1


async def is_in(shop, batch, state) -> bool:
    return (await shop.now(batch)).state is state


async def test_without_abort_calls_that_are_out_are_kept(sqlite_db):
    opened = asyncio.Event()

    async def when_opened(_) -> bytes:
        await opened.wait()
        return chat()

    async with endpoint(when_opened) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(20))
        task = asyncio.create_task(shop.work(batch))
        await eventually(lambda: upstream.in_flight == 8)
        await control.cancel(sqlite_db, batch_id=batch.id, now=shop.clock())
        await eventually(lambda: cancelled(shop, batch, 12))  # by the drain's own chores
        opened.set()
        await task
    now = await shop.now(batch)
    assert (now.state, now.succeeded, now.cancelled) == (BatchState.CANCELLED, 8, 12)


async def cancelled(shop, batch, count) -> bool:
    return (await shop.now(batch)).cancelled == count


async def test_what_would_be_tried_again_is_cancelled_with_its_batch(sqlite_db):
    opened = asyncio.Event()

    async def fails_when_opened(_) -> bytes:
        await opened.wait()
        return refusal("500 Oops")

    async with endpoint(fails_when_opened) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(3))
        task = asyncio.create_task(shop.work(batch))
        await eventually(lambda: upstream.in_flight == 3)
        await control.cancel(sqlite_db, batch_id=batch.id, now=shop.clock())
        opened.set()
        await task
    now = await shop.now(batch)
    assert (now.state, now.cancelled) == (BatchState.CANCELLED, 3)
    assert await shop.ledger(batch) == {"server_error": 3}


# ---------------------------------------------------------------- canaries


async def test_a_good_canary_goes_before_the_rest(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(60), handling=Handling(canary=20))
        await shop.work(batch)
        assert sorted(map(int, upstream.texts[:20])) == list(range(20))
    assert (await shop.now(batch)).state is BatchState.COMPLETED


async def test_a_bad_canary_pauses_its_batch_and_says_why(db):
    bad = {"3", "7", "11"}
    async with endpoint(lambda call: refusal("400 No") if text_of(call) in bad else chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(60), handling=Handling(canary=20, canary_percent=10))
        await shop.work(batch)
        assert len(upstream.calls) == 20
        assert await pause_of(shop, batch) == "canary: 3 of 20 failed (15 %), more than 10 %"
        assert (await shop.now(batch)).state is BatchState.IN_PROGRESS
        await pauses.resume(db, What.BATCH, batch.id, now=shop.clock())
        await shop.work(batch)
        assert len(upstream.calls) == 60
    now = await shop.now(batch)
    assert (now.state, now.failed) == (BatchState.COMPLETED, 3)


async def test_a_canary_that_asks_waits_for_the_answer_and_is_decided_within_a_second(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(30), handling=Handling(canary=10, canary_then=AfterCanary.ASK))
        async with shop.serving() as drain:
            await eventually(lambda: drain.counts.succeeded == 10)
            answered_at = time.monotonic()
            await eventually(lambda: pause_of(shop, batch))
            assert time.monotonic() - answered_at < AT_ONCE_SECONDS
            assert await pause_of(shop, batch) == "canary: 10 of 10 succeeded; resume to run the rest"
            await pauses.resume(db, What.BATCH, batch.id, now=shop.clock())
            await eventually(lambda: drain.counts.succeeded == 30)


async def test_a_canary_is_not_decided_before_its_retries(sqlite_db):
    async with endpoint(lambda _: chat() if len(upstream.calls) > 1 else refusal("500 Oops")) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(6), handling=Handling(canary=1, canary_percent=0))
        await shop.work(batch)
        assert upstream.texts[:2] == ["0", "0"]
    assert (await shop.now(batch)).succeeded == 6


# ---------------------------------------------------------------- budgets

#: Ten tokens in all: three of the prompt and seven of the answer.
TEN = {"prompt_tokens": 3, "completion_tokens": 7}


async def spent(shop, batch) -> int:
    now = await shop.now(batch)
    return now.prompt_tokens + now.completion_tokens


async def test_a_budget_of_tokens_is_kept_and_raising_it_goes_on(db):
    async with endpoint(lambda _: chat(**TEN)) as upstream:
        shop = workshop(db, upstream.url, max_in_flight=4)
        batch = await shop.batch(chats(80), handling=Handling(budget_tokens=500))
        await shop.work(batch)  # it ends when the batch is paused
        assert 400 <= await spent(shop, batch) <= 500
        said = await pause_of(shop, batch) or ""
        assert said.startswith(f"budget: {await spent(shop, batch)} tokens spent of 500; one more call may take ")
        async with db.write() as connection:
            theirs = sa.update(batch_rows).where(batch_rows.c.id == batch.id)
            await connection.execute(theirs.values(budget_tokens=10_000))
        await pauses.resume(db, What.BATCH, batch.id, now=shop.clock())
        await shop.work(batch)
    assert (await shop.now(batch)).state is BatchState.COMPLETED
    assert len(upstream.calls) == 80


async def test_two_workers_do_not_spend_the_same_rest(db):
    """Answers that take their time: what is out counts, whoever sent it."""

    async def later(_) -> bytes:
        await asyncio.sleep(0.15)
        return chat(**TEN)

    async with endpoint(later) as upstream:
        shop = workshop(db, upstream.url)
        shop = replace(shop, settings=replace(shop.settings, max_attempts=1))
        batch = await shop.batch(chats(300), handling=Handling(budget_tokens=700))
        async with asyncio.timeout(20):
            await asyncio.gather(*(shop.drain(batch, worker_name=f"test:{n}").run(asyncio.Event()) for n in range(2)))
    assert await spent(shop, batch) <= 700
    assert await pause_of(shop, batch)


async def test_a_budget_of_money_goes_by_the_dearest_price(sqlite_db):
    async with endpoint(lambda _: chat(**TEN)) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=2)
        prices = (PriceConfig(models=("m",), prompt=100_000.0, completion=100_000.0),
                  PriceConfig(models=("cheap",), prompt=1.0, completion=1.0))  # fmt: skip
        shop.settings = replace(shop.settings, prices=prices)
        # A call costs 1.00, by the dearest price of both.
        lines = [{**line, "max_tokens": 7} for model in ("m", "cheap") for line in chats(30, model=model)]
        batch = await shop.batch(lines, handling=Handling(budget_cost=12.0))
        await shop.work(batch)
        assert 8 <= len(upstream.calls) <= 12
        said = await pause_of(shop, batch) or ""
        assert said.startswith(f"budget: {len(upstream.calls):.2f} spent of 12.00; one more call may cost ")


async def test_a_budget_of_money_without_a_price_starts_nothing_and_says_so(sqlite_db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(3), handling=Handling(budget_cost=1.0))
        await shop.work(batch)
        assert not upstream.calls
        assert "set [[price]]" in (await pause_of(shop, batch) or "")


async def test_a_lane_that_is_halted_keeps_its_canary_undecided(sqlite_db):
    async with endpoint(lambda _: refusal("401 No", "not you")) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(30), handling=Handling(canary=10))
        drain = await shop.work(batch)
        assert drain.halts()
    assert (await shop.now(batch)).canary_until == 9
    assert [lane.is_paused for lane in await lanes.read(sqlite_db)] == [False]
