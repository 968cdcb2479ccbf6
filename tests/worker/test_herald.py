"""Finished jobs are said after they are written, and nobody waits for whoever says it."""

import asyncio
from collections.abc import Sequence

from promptmill.hints import JobKey, Listener, LocalHints
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint, refusal
from tests.worker.workshop import chats, workshop
from worker import herald as module
from worker.herald import Herald


async def test_what_is_finished_is_said_when_its_result_can_be_read(db):
    hints, said = LocalHints(), []
    async with endpoint(lambda _: refusal("500 Oops") if len(upstream.calls) == 1 else chat()) as upstream:
        shop = workshop(db, upstream.url)
        shop.hints = hints
        batch = await shop.batch(chats(5))

        async with hints.listening(Listener(finished=said.extend)):
            await shop.work(batch)
    assert sorted(said) == [(batch.id, position) for position in range(5)]  # the retry is no end
    assert len(await shop.results(batch)) == 5


class Slow(LocalHints):
    """A Redis that stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.said: list[Sequence[JobKey]] = []

    async def finished(self, jobs: Sequence[JobKey]) -> None:
        await self.go_on.wait()
        self.said.append(jobs)


async def test_slow_hints_hold_nobody_up_and_gather():
    hints = Slow()
    herald = Herald(hints)
    herald.finished([(1, 0)])
    await asyncio.sleep(0)
    herald.finished([(1, 1)])
    herald.finished([(1, 2), (2, 0)])
    hints.go_on.set()
    await eventually(lambda: len(hints.said) == 2)
    assert hints.said == [[(1, 0)], [(1, 1), (1, 2), (2, 0)]]
    await herald.close()


async def test_an_end_does_not_wait_for_hints_that_nobody_can_give(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    herald = Herald(Slow())
    herald.finished([(1, 0)])
    async with asyncio.timeout(5):
        await herald.close()
