"""Which limiter: for all workers together where there is a Redis, else for this process."""

import time
from contextlib import AsyncExitStack

from promptmill.settings import Settings
from worker.limits import Limiter
from worker.limits.memory import MemoryLimiter


def limiter_for(settings: Settings, worker_name: str, stack: AsyncExitStack) -> Limiter:
    """Limits for all workers together where there is a Redis; else this process is taken for the only one."""
    if not settings.redis_url:
        return MemoryLimiter(time.time)
    from worker.limits.redis import RedisLimiter  # noqa: PLC0415 - the embedded mode has no use for it

    limiter = RedisLimiter(settings.redis_url, worker=worker_name)
    stack.push_async_callback(limiter.aclose)
    return limiter
