"""What batches and tenants are bound by, beside their lanes: calls in flight, rate and tokens of their own.

A cap is one bucket more, `batch:7` or `tenant:3`, with the same limiter as the lanes' buckets. So it holds for all
workers together, and a tenant's over all of its batches and lanes. A batch without caps is not known here, and costs
nothing.

A cap may come, change and go while calls are out. When it comes, the batch's calls that are out are counted in it; when
it goes, they are taken out again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from promptmill.limits import Limits
from promptmill.store.active import Active
from worker.limits import Bucket, Limiter

#: A cap that waits for calls to end, maybe those of other workers, is asked again after this long.
RETRY_SECONDS: Final = 0.25
_ANY: Final = Limits()


@dataclass(slots=True, eq=False)
class _Cap:
    """One bucket. What the limiter has to be told is gathered here between two rounds of the drain."""

    bucket: Bucket
    ended: int = 0
    token_error: float = 0.0  # used beyond what was reserved
    blocked_until: float = float("-inf")


class Caps:
    """Those of the batches that one worker works on, by the names of their buckets."""

    def __init__(self, limiter: Limiter, *, clock: Callable[[], float], places: Callable[[int], int]) -> None:
        """`places` says how many calls of a batch take up a place in this worker."""
        self._limiter = limiter
        self._clock = clock
        self._places = places
        self._caps: dict[str, _Cap] = {}
        self._of: dict[int, tuple[_Cap, ...]] = {}  # batch id → what counts its calls
        self._left: set[str] = set()  # buckets that are not used any more
        self.in_use = False  # asked for every call

    def __contains__(self, key: str) -> bool:
        return key in self._caps

    async def seen(self, active: Iterable[Active]) -> None:
        """These are the batches with something to claim, and the caps that they have now."""
        wanted: dict[int, dict[str, Limits]] = {}
        seen = set()
        for each in active:
            seen.add(each.batch_id)
            if limits := _limits(each):
                wanted[each.batch_id] = limits
        if not wanted and not self._caps and not self._left:
            return
        await self.tell()
        for batch_id, limits in wanted.items():
            await self._bind(batch_id, limits)
        for batch_id in [each for each in self._of if each not in wanted]:
            if batch_id in seen or not self._places(batch_id):
                await self._bind(batch_id, {})
        self.in_use = bool(self._of)
        used = {cap.bucket.key for caps in self._of.values() for cap in caps}
        for key in self._caps.keys() - used:
            await self._tell(self._caps.pop(key))
            self._left.add(key)
        self._left = {key for key in self._left - used if not self._limiter.forget(key)}

    async def _bind(self, batch_id: int, limits: Mapping[str, Limits]) -> None:
        """From now on these count the calls of the batch, and no others do."""
        before = {cap.bucket.key for cap in self._of.pop(batch_id, ())}
        for key, now in limits.items():
            cap = self._caps.setdefault(key, _Cap(Bucket(key, now)))
            if cap.bucket.limits != now:
                cap.bucket, cap.blocked_until = Bucket(key, now), float("-inf")
        if limits:
            self._of[batch_id] = tuple(self._caps[key] for key in limits)
            self.in_use = True
        if before == limits.keys() or not (out := self._places(batch_id)):
            return
        # Calls that end while the limiter is told are counted already, by what they are bound to from now on.
        for key in sorted(before - limits.keys()):
            await self._limiter.settle([self._caps[key].bucket], ended=out, tokens=0.0)
        for key in sorted(limits.keys() - before):
            await self._limiter.acquire([Bucket(key, _ANY)], want=out, tokens_each=0.0)

    # ---------------------------------------------------------------- permits

    def blocked_seconds(self, batch_id: int) -> float:
        """For so long no call of the batch can start; 0: its caps have to be asked."""
        if batch_id not in self._of:
            return 0.0
        now = self._clock()
        return max(0.0, *(cap.blocked_until - now for cap in self._of[batch_id]))

    @property
    def fewest_places(self) -> int | None:
        """The smallest number of calls that may be in flight, of all caps; None where none limits them."""
        limits = [cap.bucket.limits.max_in_flight for cap in self._caps.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    async def take(self, key: str, want: int, *, tokens_each: float) -> int:
        """Permits for up to `want` calls from one bucket. When there are fewer, it is not asked again for a while."""
        cap, now = self._caps[key], self._clock()
        if want <= 0 or cap.blocked_until > now:
            return 0
        grant = await self._limiter.acquire([cap.bucket], want=want, tokens_each=tokens_each)
        if grant.count < want:
            cap.blocked_until = now + (RETRY_SECONDS if grant.wait_seconds is None else grant.wait_seconds)
        return grant.count

    async def give_back(self, unused: Mapping[str, int], *, tokens_each: float) -> None:
        """Permits of these buckets that found no job."""
        for key, count in unused.items():
            if count:
                bucket = self._caps[key].bucket
                await self._limiter.give_back([bucket], count=count, tokens=count * tokens_each)

    # ---------------------------------------------------------------- what ends

    def used(self, batch_id: int, tokens: float) -> None:
        """A call of the batch takes so many tokens more (or, negative, less) than was reserved for it."""
        for cap in self._of.get(batch_id, ()):
            if cap.bucket.limits.tokens_per_minute is not None:
                cap.token_error += tokens

    def released(self, batch_id: int) -> None:
        """The place of one of its calls is free."""
        for cap in self._of.get(batch_id, ()):
            cap.ended += 1
            if cap.bucket.limits.max_in_flight is not None:
                cap.blocked_until = float("-inf")

    async def tell(self) -> None:
        """Bring the limiter up to date."""
        for cap in self._caps.values():
            await self._tell(cap)

    async def _tell(self, cap: _Cap) -> None:
        if cap.ended or cap.token_error:
            ended, cap.ended = cap.ended, 0
            tokens, cap.token_error = cap.token_error, 0.0
            await self._limiter.settle([cap.bucket], ended=ended, tokens=tokens)


def batch_key(each: Active) -> str:
    """The bucket of a batch."""
    return f"batch:{each.batch_id}"


def tenant_key(each: Active) -> str:
    """The bucket of a tenant."""
    return f"tenant:{each.tenant_id}"


def _limits(each: Active) -> dict[str, Limits]:
    both = {batch_key(each): each.limits, tenant_key(each): each.tenant_limits}
    return {key: limits for key, limits in both.items() if not limits.is_unlimited}
