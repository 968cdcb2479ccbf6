"""From permits to jobs, where a limit has several lanes, and where caps or bytes let fewer start than permits allow."""

from collections import Counter
from types import SimpleNamespace

import pytest

from promptmill.limits import Limits
from promptmill.store import claims
from promptmill.store.active import Active
from promptmill.store.claims import Claimed
from tests.conftest import Clock
from worker.caps import Caps
from worker.claiming import Claiming
from worker.limits.memory import MemoryLimiter

NONE = Limits()


def active(batch_id: int, lane_id: int = 1, *, limits: Limits = NONE, jobs: int = 1_000) -> Active:
    return Active(
        batch_id=batch_id, lane_id=lane_id, priority=0, deadline=None, tenant_id=1, weight=1.0, tenant_weight=1.0,
        limits=limits, tenant_limits=NONE, remaining=jobs, at_most=jobs, waiting_since=0.0, canary_until=None,
        has_budget=False,
    )  # fmt: skip


def lane(number: int) -> SimpleNamespace:
    """What claiming asks of one that shares its upstream's limit."""
    learned = SimpleNamespace(call_tokens=1.0, call_seconds=1.0, answer_tokens=None)
    return SimpleNamespace(
        id=number, limit=SimpleNamespace(key="upstream:up"), learned=learned, waiting_for="",
        seconds_per_permit=lambda _workers: None,
    )  # fmt: skip


class Shop:
    """Claiming over a store that has whatever is asked for."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, body_bytes: int = 1) -> None:
        self.in_flight: Counter[tuple[int, int]] = Counter()
        self.claimed: Counter[tuple[int, int]] = Counter()  # (lane id, batch id) → jobs
        calls = SimpleNamespace(of_batch=self.in_flight, of_tenants=lambda _lane: Counter())
        calls.caps = Caps(MemoryLimiter(clock), clock=clock, places=lambda id_: self.in_flight[1, id_])
        self.caps = calls.caps
        self.claiming = Claiming(None, None, calls, clock=clock)

        async def claim(_db, *, lane_id, shares, max_bytes, **_rest):
            jobs = []
            for batch_id, count in shares:
                for n in range(count):
                    if jobs and (len(jobs) + 1) * body_bytes > max_bytes:
                        break
                    jobs.append(
                        Claimed(
                            job_id=n,
                            batch_id=batch_id,
                            position=n,
                            lane_id=lane_id,
                            epoch=1,
                            attempts=0,
                            file_id=0,
                            part=n,
                            body_bytes=body_bytes,
                            tokens=1,
                            max_tokens=None,
                            deadline=None,
                            line=b"",
                            form="",
                        )
                    )
            self.claimed.update((job.lane_id, job.batch_id) for job in jobs)
            return jobs

        monkeypatch.setattr(claims, "claim", claim)

    async def claim(self, *lanes, permits: int, most: dict[int, int], max_bytes: int = 10**9) -> int:
        jobs = await self.claiming.claim(lanes, permits, tokens_each=1.0, most=most, worker_id=1, max_bytes=max_bytes)
        return len(jobs)


@pytest.mark.parametrize("permits", [1, 3, 9, 10, 12, 20])
async def test_caps_that_are_full_do_not_keep_others_from_the_permits(clock, monkeypatch, permits):
    shop = Shop(clock, monkeypatch)
    shop.in_flight.update({(1, number): 1 for number in range(30)} | {(1, 99): 50})
    found = [*(active(number, limits=Limits(max_in_flight=1)) for number in range(30)), active(99)]
    await shop.caps.seen(found)
    shop.claiming.know(found)
    for _ in range(12):  # a cap is known to be full once it was asked; here three at a time are
        await shop.claim(lane(1), permits=permits, most={1: 500})
    shop.claimed.clear()
    assert await shop.claim(lane(1), permits=permits, most={1: 500}) == permits
    assert shop.claimed == {(1, 99): permits}


async def test_a_lane_that_could_take_little_has_no_claim_to_all_of_it_later(clock, monkeypatch):
    shop, lanes = Shop(clock, monkeypatch), (lane(1), lane(2))
    shop.claiming.know([active(7, 1, jobs=10**6), active(7, 2, jobs=10**6)])
    for _ in range(300):
        await shop.claim(*lanes, permits=100, most={1: 1, 2: 500})
    shop.claimed.clear()
    for _ in range(4):
        await shop.claim(*lanes, permits=100, most={1: 500, 2: 500})
    assert shop.claimed == {(1, 7): pytest.approx(200, abs=3), (2, 7): pytest.approx(200, abs=3)}


async def test_each_of_two_lanes_has_its_part_of_permits_that_come_one_by_one(clock, monkeypatch):
    shop, lanes = Shop(clock, monkeypatch), (lane(1), lane(2))
    shop.claiming.know([active(7, 1, jobs=10_000), active(7, 2, jobs=30_000)])
    for _ in range(100):
        await shop.claim(*lanes, permits=1, most={1: 500, 2: 500})
    assert shop.claimed == {(1, 7): pytest.approx(25, abs=1), (2, 7): pytest.approx(75, abs=1)}


async def test_the_budget_of_bytes_is_that_of_all_lanes_together(clock, monkeypatch):
    shop = Shop(clock, monkeypatch, body_bytes=4_000_000)
    shop.claiming.know([active(number, number) for number in range(1, 11)])
    lanes = [lane(number) for number in range(1, 11)]
    assert await shop.claim(*lanes, permits=100, most=dict.fromkeys(range(1, 11), 500), max_bytes=1_000_000) == 1
