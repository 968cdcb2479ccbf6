"""Hints push, polling is the truth: wakes a drain when somebody says that there is new work. A lost hint costs one
polling interval, so whatever goes wrong here is only noted."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import redis.asyncio as redis
from redis.exceptions import RedisError

from promptmill.dispatch import WORK_CHANNEL

log = logging.getLogger("promptmill.worker")

_RECONNECT_SECONDS: Final = 1.0


async def listen(redis_url: str, wake: Callable[[], None]) -> None:
    """Call `wake` at every hint, for ever; reconnects by itself. Cancel it to end."""
    away = False
    while True:
        client = redis.Redis.from_url(redis_url, socket_connect_timeout=2, socket_keepalive=True)
        try:
            async with client, client.pubsub() as channel:
                await channel.subscribe(WORK_CHANNEL)
                if away:
                    log.info("hints are back")
                    away = False
                wake()  # what was said while nobody listened
                async for _ in channel.listen():
                    wake()
        except (RedisError, OSError) as error:
            if not away:
                log.info("no hints (%s); new work is found by polling", type(error).__name__)
                away = True
        await asyncio.sleep(_RECONNECT_SECONDS)
