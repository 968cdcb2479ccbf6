"""Tickets and hints: how a process without work to do is told that there is some.

A ticket is a Celery message that asks for a drain. It carries nothing, expires, and may be lost or doubled without
harm: the jobs are rows, and upkeep issues new tickets while there is work. A hint wakes drains that run already.
Without a Redis URL (the embedded mode) there is nobody to tell, and both do nothing.
"""

import logging
import time
from typing import Any, Final

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from promptmill.hints import WORK_CHANNEL

log = logging.getLogger("promptmill.dispatch")

DRAIN_TASK: Final = "promptmill.drain"
UPKEEP_TASK: Final = "promptmill.upkeep"
PURGE_TASK: Final = "promptmill.purge"
DRAIN_QUEUE: Final = "drain"
MAINT_QUEUE: Final = "maint"

#: A ticket that nobody took by then is void; upkeep issues another one while there is work.
TICKET_SECONDS: Final = 60

#: Sorted set: "worker=slots" for each Celery worker that serves drains, by the time until which that holds.
SLOTS_KEY: Final = "promptmill:slots"
SLOTS_SECONDS: Final = 30

#: DESIGN: a Redis restart kills a worker that holds an unacked message, so none is ever held; delays are `not_before`.
CELERY_SETTINGS: Final[dict[str, Any]] = {
    "task_acks_late": False,
    "task_ignore_result": True,
    "task_default_queue": MAINT_QUEUE,
    "task_create_missing_queues": True,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_soft_shutdown_timeout": 0,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {
        "visibility_timeout": 3600,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
}


class Dispatcher:
    """Issues tickets and hints. Failing to is logged and otherwise harmless: polling finds the work."""

    def __init__(self, redis_url: str | None) -> None:
        self._celery: Celery | None = None
        if redis_url:
            self._celery = Celery("promptmill-dispatch", broker=redis_url, set_as_current=False)
            self._celery.conf.update(CELERY_SETTINGS)
            # A producer that finds no broker must not hang for it.
            self._celery.conf.update(
                broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 2, "max_retries": 1}
            )

    def work_arrived(self, tickets: int = 1) -> bool:
        """There may be ready jobs: wake drains that run, and ask for as many as `tickets` new ones.

        No more tickets wait than there are slots: what is too many, the oldest, is taken away again. False when the
        broker could not be reached (or there is none).
        """
        if self._celery is None:
            return False
        try:
            with self._celery.connection_for_write() as connection:
                redis = connection.default_channel.client
                redis.publish(WORK_CHANNEL, "1")
                for _ in range(tickets):
                    self._celery.send_task(
                        DRAIN_TASK, queue=DRAIN_QUEUE, expires=TICKET_SECONDS, retry=False, connection=connection
                    )
                redis.ltrim(DRAIN_QUEUE, 0, slots(redis) - 1)
        except (OperationalError, RedisError, OSError) as error:
            log.warning("no ticket issued, Redis is away (%s); polling will find the work", type(error).__name__)
            return False
        return True

    def tickets_wanted(self, running_drains: int) -> int:
        """How many more drains the workers' slots can take: slots, less drains that run and tickets under way."""
        if self._celery is None:
            return 0
        try:
            with self._celery.connection_for_read() as connection:
                redis = connection.default_channel.client
                return max(0, slots(redis) - running_drains - int(redis.llen(DRAIN_QUEUE)))
        except (OperationalError, RedisError, OSError) as error:
            log.warning("cannot count tickets, Redis is away (%s)", type(error).__name__)
            return 0

    def close(self) -> None:
        """Close connections to the broker."""
        if self._celery is not None:
            self._celery.close()


def announce_slots(redis: Any, worker: str, count: int) -> None:
    """This worker can run so many drains, for the next half minute."""
    now = time.time()
    redis.zremrangebyscore(SLOTS_KEY, "-inf", now)
    redis.zadd(SLOTS_KEY, {f"{worker}={count}": now + SLOTS_SECONDS})


def slots(redis: Any) -> int:
    """How many drains all workers together can run. With no worker announced one: it is for the first to come."""
    announced = [bytes(member).decode() for member in redis.zrangebyscore(SLOTS_KEY, time.time(), "+inf")]
    return max(1, sum(int(member.rpartition("=")[2]) for member in announced))
