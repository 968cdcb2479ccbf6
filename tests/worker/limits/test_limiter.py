"""Permits: what every storage of limits has to do alike."""

from worker.limits import Bucket, Grant, Limits


def one(**limits) -> list[Bucket]:
    return [Bucket("lane:1", Limits(**limits))]


async def test_without_limits_everything_is_granted(limiter):
    assert await limiter.acquire(one(), want=500, tokens_each=10) == Grant(500)


async def test_calls_in_flight_are_bounded_and_come_back(limiter):
    buckets = one(max_in_flight=3)
    assert await limiter.acquire(buckets, want=5, tokens_each=1) == Grant(3, None, "in_flight")
    assert await limiter.acquire(buckets, want=1, tokens_each=1) == Grant(0, None, "in_flight")
    await limiter.settle(buckets, ended=2, tokens=0)
    assert (await limiter.acquire(buckets, want=5, tokens_each=1)).count == 2


async def test_a_rate_grants_its_burst_then_says_how_long_to_wait(limiter, clock):
    buckets = one(requests_per_minute=6_000)
    grant = await limiter.acquire(buckets, want=500, tokens_each=1)
    assert (grant.count, grant.binding) == (30, "rpm")
    assert 0 < grant.wait_seconds < 0.1
    clock.advance(grant.wait_seconds)
    again = await limiter.acquire(buckets, want=500, tokens_each=1)
    assert 1 <= again.count <= 6


async def test_tokens_bind_too_and_are_settled_when_the_usage_is_known(limiter, clock):
    buckets = one(tokens_per_minute=60_000)
    grant = await limiter.acquire(buckets, want=100, tokens_each=100)
    assert (grant.count, grant.binding) == (3, "tpm")
    await limiter.settle(buckets, ended=3, tokens=5_000)  # each took far more than was reserved
    clock.advance(4.9)
    assert (await limiter.acquire(buckets, want=1, tokens_each=100)).count == 0
    clock.advance(0.3)
    assert (await limiter.acquire(buckets, want=1, tokens_each=100)).count == 1


async def test_a_refund_lets_others_go(limiter):
    buckets = one(tokens_per_minute=60_000)
    first = await limiter.acquire(buckets, want=1, tokens_each=50_000)
    assert first.count == 1
    assert (await limiter.acquire(buckets, want=1, tokens_each=100)).count == 0
    await limiter.settle(buckets, ended=1, tokens=-49_990)
    assert (await limiter.acquire(buckets, want=1, tokens_each=100)).count == 1


async def test_unused_permits_are_as_if_never_taken(limiter):
    buckets = one(requests_per_minute=6_000, tokens_per_minute=6_000_000, max_in_flight=40)
    before = await limiter.acquire(buckets, want=100, tokens_each=10)
    await limiter.give_back(buckets, count=before.count, tokens=before.count * 10)
    assert (await limiter.acquire(buckets, want=100, tokens_each=10)).count == before.count


async def test_a_pause_stops_the_lane_and_ends_by_itself(limiter, clock):
    buckets = one(max_in_flight=10)
    await limiter.pause("lane:1", until=clock() + 5)
    await limiter.pause("lane:1", until=clock() + 2)  # shorter: the longer one stands
    grant = await limiter.acquire(buckets, want=1, tokens_each=1)
    assert (grant.count, grant.binding, grant.wait_seconds) == (0, "paused", 5)
    clock.advance(5)
    assert (await limiter.acquire(buckets, want=1, tokens_each=1)).count == 1


async def test_several_buckets_are_all_or_nothing(limiter):
    lane, upstream = Bucket("lane:1", Limits(max_in_flight=5)), Bucket("upstream:u", Limits(max_in_flight=2))
    assert (await limiter.acquire([lane, upstream], want=5, tokens_each=1)).count == 2
    refused = await limiter.acquire([lane, upstream], want=1, tokens_each=1)
    assert (refused.count, refused.binding) == (0, "in_flight")
    # The refusal took nothing from the bucket that had room.
    assert (await limiter.acquire([lane], want=9, tokens_each=1)).count == 3


async def test_a_bucket_is_forgotten_when_nothing_is_counted_in_it_any_more(limiter, clock):
    buckets = one(requests_per_minute=60, max_in_flight=3)
    assert limiter.forget("lane:1")  # never used
    assert (await limiter.acquire(buckets, want=2, tokens_each=1)).count == 1
    assert not limiter.forget("lane:1")  # a call is out
    await limiter.settle(buckets, ended=1, tokens=0)
    assert not limiter.forget("lane:1")  # the rate knows of it
    assert (await limiter.acquire(buckets, want=1, tokens_each=1)).count == 0
    clock.advance(1.1)
    assert limiter.forget("lane:1")
    assert (await limiter.acquire(buckets, want=1, tokens_each=1)).count == 1
