"""Finished jobs are tried again: only those that are meant, each with all of its tries, and the ledger keeps it all."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

from promptmill.errors import NotNow
from promptmill.intake import again as module
from promptmill.intake.again import Again, start_again
from promptmill.job import BatchState, State
from promptmill.outcome import Failure, Reason
from promptmill.store import aborts, batches, claims, control, records, selection, workers
from promptmill.store.records import Ending
from promptmill.tables import batches as batch_rows
from promptmill.tables import file_parts, results
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint, refusal, text_of
from tests.worker.workshop import chats, workshop


async def again(shop, batch, **terms) -> Again:
    return await start_again(shop.db, shop.settings, batch.id, clock=shop.clock, **terms)


def lines(*models: str) -> list[dict]:
    return [{"custom_id": f"c{n}", "body": chats(1, model=model, first=n)[0]} for n, model in enumerate(models)]


async def test_after_a_run_with_failures_only_those_are_sent_again(db):
    bad = {str(n) for n in range(100) if n % 10 < 3}
    mended = False

    def answered(call):
        return refusal("400 Bad Request") if text_of(call) in bad and not mended else chat()

    async with endpoint(answered) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(100))
        await shop.work(batch)
        assert (await shop.now(batch)).failed == 30
        mended, sent_before = True, len(upstream.calls)
        assert await again(shop, batch, states=[State.FAILED]) == Again(30, 0)
        running = await shop.now(batch)
        assert (running.state, running.succeeded, running.failed) == (BatchState.IN_PROGRESS, 70, 0)
        assert running.finished_at is None
        await shop.work(batch)
        assert sorted(upstream.texts[sent_before:], key=int) == sorted(bad, key=int)
        done = await shop.now(batch)
        assert (done.state, done.succeeded, done.failed, done.total) == (BatchState.COMPLETED, 100, 0, 100)
        assert await shop.ledger(batch) == {"succeeded": 100, "rejected": 30}


async def test_a_job_has_all_of_its_tries_again(sqlite_db):
    async with endpoint(lambda _: refusal("500 Oops")) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_attempts=2)
        batch = await shop.batch(chats(1))
        await shop.work(batch)
        await again(shop, batch)
        await shop.work(batch)
        (result,) = await shop.results(batch)
        assert (result.state, result.attempts) == (State.FAILED, 2)
        assert await shop.ledger(batch) == {"server_error": 4}


async def test_bad_lines_are_checked_again_by_the_settings_of_today(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url, models=("old/*",))
        taken = [*lines("old/a", "new/b", "none/c"), b"{no json\n", {"custom_id": "c0", "body": chats(1)[0]}]
        taken[4]["body"]["model"] = "new/b"  # its name is taken
        batch = await shop.batch(taken, skip_bad_lines=True)
        await shop.work(batch)
        assert ((await shop.now(batch)).succeeded, (await shop.now(batch)).invalid) == (1, 4)
        config = replace(shop.settings.upstreams[0], models=("old/*", "new/*"))
        shop.settings = replace(shop.settings, upstreams=(config,))
        assert await again(shop, batch, states=[State.INVALID]) == Again(1, 3)
        await shop.work(batch)
        done = await shop.now(batch)
        assert (done.state, done.total, done.succeeded, done.invalid) == (BatchState.COMPLETED, 5, 2, 3)
        told = [(result.custom_id, result.state) for result in await shop.results(batch)]
        bad = State.INVALID
        assert told == [
            ("c0", State.SUCCEEDED), ("c1", State.SUCCEEDED), (None, bad), (None, bad), (None, bad)
        ]  # fmt: skip
        assert Counter(json.loads(call.body)["model"] for call in upstream.calls) == {"old/a": 1, "new/b": 1}


async def test_of_bad_lines_with_one_name_the_first_becomes_the_job(sqlite_db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url, models=("old/*",))
        batch = await shop.batch(
            [*lines("old/a"), *({**lines("new/b")[0], "custom_id": "twin"} for _ in "12")], skip_bad_lines=True
        )
        shop.settings = replace(
            shop.settings, upstreams=(replace(shop.settings.upstreams[0], models=("old/*", "new/*")),)
        )
        assert await again(shop, batch, states=[State.INVALID]) == Again(1, 1)
        async with sqlite_db.read() as connection:
            named = sa.select(file_parts.c.part).where(file_parts.c.custom_id == "twin")
            assert list((await connection.execute(named)).scalars()) == [1]


async def test_a_plain_line_is_read_as_its_input_was(sqlite_db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(sqlite_db, upstream.url, models=("old/*",))
        terms = {"skip_bad_lines": True}
        batch = await shop.batch([{"prompt": "7", "model": "new/b"}], **terms)
        shop.settings = replace(shop.settings, upstreams=(replace(shop.settings.upstreams[0], models=("*",)),))
        assert await again(shop, batch) == Again(1, 0)
        await shop.work(batch)
        assert upstream.texts == ["7"]


async def test_what_was_cancelled_runs_and_its_calls_are_not_broken_off(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(3))
        await control.cancel(db, batch_id=batch.id, abort=True, now=shop.clock())
        with pytest.raises(NotNow, match="is cancelling"):
            await again(shop, batch)
        await control.finish_cancelling(db, batch_id=batch.id, now=shop.clock())
        assert await again(shop, batch, states=[State.CANCELLED]) == Again(3, 0)
        row = await shop.now(batch)
        assert (row.state, row.aborts_calls, row.cancelling_at) == (BatchState.IN_PROGRESS, False, None)
        await shop.work(batch)
        assert (await shop.now(batch)).succeeded == 3


async def test_whose_call_was_to_be_broken_off_before_is_wanted_now(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(1))
        worker = await workers.register(db, name="w", now=shop.clock())
        (lane_id,) = await batches.lane_names(db, batch.id)
        terms = {"worker_id": worker, "lane_id": lane_id, "max_bytes": 1 << 20}
        (job,) = await claims.claim(db, shares=[(batch.id, 1)], **terms)
        assert await aborts.ask(db, (batch.id, 0), now=shop.clock())
        refused = Ending(job, State.FAILED, Failure(Reason.REJECTED, "no"), 1, shop.clock(), shop.clock())
        await records.record(db, worker_id=worker, endings=[refused], now=shop.clock())
        assert await again(shop, batch) == Again(1, 0)
        await aborts.carry_out(db, now=shop.clock())
        await shop.work(batch)
        assert (await shop.now(batch)).succeeded == 1


async def test_what_expired_has_no_deadline_any_more(db):
    async with endpoint(lambda _: chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(2), deadline=shop.clock() - 1)
        await shop.work(batch)
        assert ((await shop.now(batch)).state, len(upstream.calls)) == (BatchState.EXPIRED, 0)
        assert await again(shop, batch, states=[State.EXPIRED]) == Again(2, 0)
        assert (await shop.now(batch)).deadline is None
        await shop.work(batch)
        assert (await shop.now(batch)).state is BatchState.COMPLETED


async def test_jobs_are_tried_again_while_the_rest_still_runs(db):
    mended, others = False, asyncio.Event()

    async def answered(call):
        if text_of(call) == "0":
            return chat() if mended else refusal("400 Bad Request")
        await others.wait()
        return chat()

    async with endpoint(answered) as upstream:
        shop = workshop(db, upstream.url)
        async with shop.serving() as drain:
            batch = await shop.batch(chats(4))
            drain.wake()

            async def failed():
                return (await shop.now(batch)).failed

            await eventually(failed)
            mended = True
            assert await again(shop, batch, states=[State.FAILED]) == Again(1, 0)
            drain.wake()

            async def succeeded():
                return (await shop.now(batch)).succeeded == 1

            await eventually(succeeded)
            others.set()

            async def completed():
                return (await shop.now(batch)).state is BatchState.COMPLETED

            await eventually(completed)
        assert (await shop.now(batch)).succeeded == 4
        assert Counter(upstream.texts) == {"0": 2, "1": 1, "2": 1, "3": 1}


async def test_only_the_jobs_that_are_named(db):
    async with endpoint(lambda _: refusal("400 Bad Request")) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(lines(*["m"] * 5))
        await shop.work(batch)
        named = await selection.positions(db, batch, ["c1", "c3", "nobody"])
        assert named == {"c1": [1], "c3": [3]}
        assert await again(shop, batch, positions=[1, 3]) == Again(2, 0)
        assert await again(shop, batch, positions=[1, 3]) == Again(0, 0)
        assert await shop.unfinished(batch) == {State.READY: 2}


async def test_many_move_in_several_steps_and_are_all_there(db):
    shop = workshop(db, "http://127.0.0.1:1/v1")
    batch = await shop.batch(chats(11_000))
    await control.cancel(db, batch_id=batch.id, now=shop.clock())
    await control.finish_cancelling(db, batch_id=batch.id, now=shop.clock())
    one, other = await asyncio.gather(again(shop, batch), again(shop, batch))
    assert one.retried + other.retried == 11_000  # each of them once
    row = await batches.get(db, batch.id)
    assert (row.state, row.cancelled, row.done) == (BatchState.IN_PROGRESS, 0, 0)
    assert await shop.unfinished(batch) == {State.READY: 11_000}
    async with db.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(results))).scalar_one() == 0


async def test_who_was_still_cancelling_lets_what_started_again_be(db):
    """Upkeep goes through the list that it read before the command line was done with the same."""
    shop = workshop(db, "http://nobody.invalid/v1")
    batch = await shop.batch(chats(5))
    await control.cancel(db, batch_id=batch.id, now=shop.clock())
    (listed,) = await control.cancelling(db)
    await control.finish_cancelling(db, batch_id=batch.id, now=shop.clock())
    assert (await again(shop, batch, states=[State.CANCELLED])).retried == 5
    assert await control.finish_cancelling(db, batch_id=listed, now=shop.clock()) == 0
    assert await shop.unfinished(batch) == {State.READY: 5}
    assert (await shop.now(batch)).cancelled == 0


async def test_what_stays_expired_is_told_at_the_end(db):
    async with endpoint(lambda _: refusal("400 Bad Request")) as upstream:
        shop = workshop(db, upstream.url, max_in_flight=1)
        batch = await shop.batch(chats(4))
        await shop.work(batch)
        async with db.write() as connection:
            theirs = sa.update(results).where(results.c.batch_id == batch.id, results.c.position > 0)
            await connection.execute(theirs.values(state=State.EXPIRED))
            counts = {"failed": 1, "expired": 3, "state": BatchState.EXPIRED}
            await connection.execute(sa.update(batch_rows).where(batch_rows.c.id == batch.id).values(counts))
        assert (await again(shop, batch, states=[State.FAILED])).retried == 1
        await shop.work(batch)
    done = await shop.now(batch)
    assert (done.failed, done.expired, done.state) == (1, 3, BatchState.EXPIRED)


async def test_two_who_retry_at_once_send_each_job_once_and_no_number_is_used_twice(db, monkeypatch):
    """What the slower one read has started again, and failed again, before it comes to move it."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    move = module._Retrial.move

    async def slowly(self, group) -> None:
        reached.set()
        await go_on.wait()
        await move(self, group)

    async with endpoint(lambda _: refusal("400 Bad Request")) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(5))
        await shop.work(batch)
        monkeypatch.setattr(module._Retrial, "move", slowly)
        slower = asyncio.create_task(again(shop, batch))
        await reached.wait()
        monkeypatch.setattr(module._Retrial, "move", move)
        assert await again(shop, batch) == Again(5, 0)
        await shop.work(batch)
        go_on.set()
        assert await slower == Again(0, 0)  # they are not what it read any more
        assert (await shop.now(batch)).state is BatchState.COMPLETED
        assert await again(shop, batch) == Again(5, 0)
        await shop.work(batch)
        assert len(upstream.calls) == 15
        assert await shop.ledger(batch) == {"rejected": 15}


async def test_what_changed_its_state_meanwhile_was_not_chosen(sqlite_db, monkeypatch):
    async with endpoint(lambda _: refusal("400 Bad Request")) as upstream:
        shop = workshop(sqlite_db, upstream.url)
        batch = await shop.batch(chats(2))
        await shop.work(batch)
        move = module._Retrial.move

        async def late(self, group) -> None:
            monkeypatch.setattr(module._Retrial, "move", move)
            await again(shop, batch)
            await control.cancel(sqlite_db, batch_id=batch.id, now=shop.clock())
            await control.finish_cancelling(sqlite_db, batch_id=batch.id, now=shop.clock())
            await module._Retrial.move(self, group)

        monkeypatch.setattr(module._Retrial, "move", late)
        with pytest.raises(NotNow, match="was cancelled meanwhile: 0 jobs"):
            await again(shop, batch, states=[State.FAILED])
        done = await shop.now(batch)
        assert (done.state, done.cancelled, done.failed) == (BatchState.CANCELLED, 2, 0)


@pytest.mark.parametrize("has_ended", [False, True], ids=["cancelling", "cancelled"])
@pytest.mark.parametrize("was", [State.FAILED, State.CANCELLED])
async def test_a_cancel_between_two_groups_holds(db, monkeypatch, was, has_ended):
    monkeypatch.setattr(module, "_MOVED_AT_ONCE", 3)
    monkeypatch.setattr(module, "_LINES_AT_ONCE", 3)
    async with endpoint(lambda _: refusal("400 Bad Request")) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(9))

        async def cancel() -> None:
            await control.cancel(db, batch_id=batch.id, now=shop.clock())
            if has_ended:
                await control.finish_cancelling(db, batch_id=batch.id, now=shop.clock())

        if was is State.FAILED:
            await shop.work(batch)
        else:
            await control.cancel(db, batch_id=batch.id, now=shop.clock())
            await control.finish_cancelling(db, batch_id=batch.id, now=shop.clock())
        move = module._Retrial.move

        async def then_cancelled(self, group) -> None:
            await move(self, group)
            monkeypatch.setattr(module._Retrial, "move", move)
            await cancel()

        monkeypatch.setattr(module._Retrial, "move", then_cancelled)
        with pytest.raises(NotNow, match="was cancelled meanwhile: 3 jobs were started again before that"):
            await again(shop, batch, states=[was])
        assert (await shop.now(batch)).state is (BatchState.CANCELLED if has_ended else BatchState.CANCELLING)


async def test_of_those_that_are_named_the_ones_that_succeeded_are_told(db):
    async with endpoint(lambda call: refusal("400 Bad Request") if text_of(call) == "1" else chat()) as upstream:
        shop = workshop(db, upstream.url)
        batch = await shop.batch(chats(3))
        await shop.work(batch)
        assert await again(shop, batch, positions=[0, 1]) == Again(1, 0, 1)
        assert await again(shop, batch) == Again(0, 0)
