"""A Celery worker that serves drains says how many slots it has, so that no more tickets are issued than can be used.

It says so when it is ready, and again before the announcement expires; so an emptied Redis knows it again in seconds.
"""

import logging
from typing import Any, Final

from celery import bootsteps
from celery.worker import state

from promptmill.dispatch import DRAIN_QUEUE, Dispatcher, announce_slots

log = logging.getLogger("promptmill.worker")

_EVERY_SECONDS: Final = 5.0


def install(app: Any) -> None:
    """Add the announcing step to the app's workers."""
    app.steps["consumer"].add(Announce)


class Announce(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Runs in the worker's main process, on its timer."""

    requires = frozenset({"celery.worker.consumer.tasks:Tasks"})

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._timer: Any = None
        super().__init__(consumer)

    def start(self, consumer: Any) -> None:
        """The worker is ready (or its connection is back): announce, and ask for a ticket if it can take one."""
        if DRAIN_QUEUE not in consumer.app.amqp.queues.consume_from:
            return
        self._announce(consumer)
        if len(state.active_requests) < consumer.pool.num_processes:
            dispatcher = Dispatcher(consumer.app.conf.broker_url)
            dispatcher.work_arrived(tickets=1)
            dispatcher.close()
        self._timer = consumer.timer.call_repeatedly(_EVERY_SECONDS, self._announce, (consumer,))

    def stop(self, consumer: Any) -> None:
        """The worker stops, or its connection is gone."""
        del consumer
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    terminate = stop

    def _announce(self, consumer: Any) -> None:
        try:
            with consumer.app.connection_for_write() as connection:
                announce_slots(connection.default_channel.client, consumer.hostname, consumer.pool.num_processes)
        except Exception as error:  # noqa: BLE001 - whatever a broker raises: the next announcement is soon
            log.info("slots not announced: %s", type(error).__name__)
