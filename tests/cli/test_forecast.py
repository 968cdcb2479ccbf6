"""What the progress view of a run says of its end, against how it ends: a real drain, and an endpoint that takes its
time."""

import asyncio
import time

import pytest

from cli.forecast import Forecast
from cli.progress import Meter, Reading, line
from tests.conftest import eventually
from tests.worker.endpoint import chat, endpoint
from tests.worker.workshop import chats, workshop

JOBS = 500
CALL_SECONDS = 0.2
IN_FLIGHT = 20  # so that it takes five seconds


async def test_half_way_through_a_real_run_its_end_is_foretold(sqlite_db):
    async def answer(_call):
        await asyncio.sleep(CALL_SECONDS)
        return chat()

    async with endpoint(answer) as upstream:
        shop = workshop(sqlite_db, upstream.url, max_in_flight=IN_FLIGHT)
        batch = await shop.batch(chats(JOBS), deadline=time.time() + 60)
        forecast = Forecast(sqlite_db, shop.settings, batch.id, time.time)
        drain = shop.drain(batch)

        def read() -> Reading:
            done = drain.counts.succeeded
            return Reading(done, 0, 0, drain.counts.in_flight, drain.counts.tokens, "", forecast.outlook, time.time())

        meter = Meter(JOBS, read)
        assert line(meter.snapshot()).endswith("? left")
        async with forecast.looking():
            running = asyncio.create_task(drain.run(asyncio.Event()))
            await eventually(lambda: drain.counts.succeeded >= JOBS // 2)
            await forecast.look()
            told, at = meter.snapshot(), time.time()
            await running
        took = time.time() - at
    assert forecast.outlook is None or forecast.outlook.at <= at + took
    assert told.foresight is not None
    assert (told.foresight.reason, told.foresight.holds_deadline) == (None, True)
    # How near it comes is held to in tests/promptmill/test_foresight.py; here others take the machine's time meanwhile.
    assert told.seconds_left == pytest.approx(took, rel=0.4)
    assert line(told).endswith(f"{told.left}")
    assert told.left.endswith(" s left")
