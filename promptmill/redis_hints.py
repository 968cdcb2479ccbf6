"""The cluster's hints: Redis pub/sub, which forgets at once what nobody heard. Whatever goes wrong here is only noted,
once: polling finds the work, and the results are in the database.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from promptmill.hints import WORK_CHANNEL, JobKey, Listener, Piece

log = logging.getLogger("promptmill.hints")

FINISHED_CHANNEL: Final = "promptmill:hint:finished"
PIECE_CHANNEL: Final = "promptmill:hint:piece"

_RECONNECT_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 2
#: After a failure nobody waits for Redis again before this has passed.
_QUIET_SECONDS: Final = 1.0

_KEYS = msgspec.msgpack.Decoder(list[tuple[int, int]])
_PIECE = msgspec.msgpack.Decoder(Piece)


class RedisHints:
    """Hints between processes. One per event loop."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._client = redis.Redis.from_url(
            redis_url, socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=_CONNECT_SECONDS, socket_keepalive=True
        )
        self._quiet_until = float("-inf")

    async def work_arrived(self) -> None:
        """There may be ready jobs."""
        await self._say(WORK_CHANNEL, b"1")

    async def finished(self, jobs: Sequence[JobKey]) -> None:
        """The results of these jobs are in the database."""
        await self._say(FINISHED_CHANNEL, msgspec.msgpack.encode(jobs))

    async def piece(self, piece: Piece) -> None:
        """A part of an answer, for whoever waits for it."""
        await self._say(PIECE_CHANNEL, msgspec.msgpack.encode(piece))

    async def _say(self, channel: str, message: bytes) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until:
            return
        try:
            await self._client.publish(channel, message)
        except (RedisError, OSError) as error:
            self._quiet_until = asyncio.get_running_loop().time() + _QUIET_SECONDS
            log.info("a hint was not given, Redis is away (%s); polling finds what it was about", type(error).__name__)

    @asynccontextmanager
    async def listening(self, listener: Listener) -> AsyncIterator[None]:
        """While it is entered, `listener` hears; reconnects by itself."""
        task = asyncio.create_task(self._listen(listener), name="promptmill-hints")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def aclose(self) -> None:
        """Close the connections."""
        with suppress(RedisError, OSError):  # it is gone, which is what was wanted
            await self._client.aclose()

    async def _listen(self, listener: Listener) -> None:
        wanted = {WORK_CHANNEL: listener.work, FINISHED_CHANNEL: listener.finished, PIECE_CHANNEL: listener.piece}
        channels = [channel for channel, heard in wanted.items() if heard is not None]
        away = False
        while True:
            client = redis.Redis.from_url(self._url, socket_connect_timeout=_CONNECT_SECONDS, socket_keepalive=True)
            try:
                async with client, client.pubsub() as subscription:
                    await subscription.subscribe(*channels)
                    if away:
                        log.info("hints are back")
                        away = False
                    _missed(listener)
                    async for message in subscription.listen():
                        if message["type"] == "message":
                            _hand_on(listener, message)
            except (RedisError, OSError) as error:
                if not away:
                    log.info("no hints (%s); what happens is found by polling", type(error).__name__)
                    away = True
            await asyncio.sleep(_RECONNECT_SECONDS)


def _missed(listener: Listener) -> None:
    """What was said while nobody listened."""
    if listener.work is not None:
        listener.work()
    if listener.finished is not None:
        listener.finished(())


def _hand_on(listener: Listener, message: dict[str, Any]) -> None:
    channel, data = message["channel"].decode(), message["data"]
    try:
        if channel == WORK_CHANNEL and listener.work is not None:
            listener.work()
        elif channel == FINISHED_CHANNEL and listener.finished is not None:
            listener.finished(_KEYS.decode(data))
        elif channel == PIECE_CHANNEL and listener.piece is not None:
            listener.piece(_PIECE.decode(data))
    except msgspec.DecodeError:
        log.warning("a hint on %s could not be read; is another version of promptmill running?", channel)
