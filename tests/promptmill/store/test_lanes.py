"""What people see of lanes: why and with which status one is halted, and what keeps a worker from starting calls."""

import json

import sqlalchemy as sa

from promptmill.job import LaneState
from promptmill.store import lanes, workers
from promptmill.tables import workers as worker_rows


async def test_a_halt_says_with_which_status_until_somebody_resumes(db):
    lane_id = await lanes.ensure(db, "up", "m")
    await lanes.halted(db, lane_ids=[lane_id], reason="no money", status=402)
    (lane,) = await lanes.read(db)
    assert (lane.state, lane.reason, lane.halt_status) == (LaneState.HALTED, "no money", 402)
    await lanes.resumed(db, lane_ids=[lane_id])
    (lane,) = await lanes.read(db)
    assert (lane.state, lane.reason, lane.halt_status) == (LaneState.UNKNOWN, None, None)


async def test_a_halt_without_an_answer_has_no_status(db):
    lane_id = await lanes.ensure(db, "up", "m")
    await lanes.halted(db, lane_ids=[lane_id], reason="no such certificate")
    (lane,) = await lanes.read(db)
    assert (lane.state, lane.halt_status) == (LaneState.HALTED, None)


async def test_a_heartbeat_says_what_its_worker_waits_for(db, clock):
    worker_id = await workers.register(db, name="w", now=clock())

    async def waiting_for() -> object:
        async with db.read() as connection:
            text = (await connection.execute(sa.select(worker_rows.c.waiting_for))).scalar_one()
        return None if text is None else json.loads(text)

    assert await workers.heartbeat(db, worker_id=worker_id, in_flight=3, waiting_for={7: "requests"}, now=clock())
    assert await waiting_for() == {"7": "requests"}
    await workers.heartbeat(db, worker_id=worker_id, in_flight=0, waiting_for={}, now=clock())
    assert await waiting_for() is None
    await workers.heartbeat(db, worker_id=worker_id, in_flight=3, waiting_for={7: "halted"}, now=clock())
    await workers.stopped(db, worker_id=worker_id, now=clock())
    assert await waiting_for() is None
