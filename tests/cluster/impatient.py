"""The workers' app, whose drains give up soon when there is nothing to do: `celery -A tests.cluster.impatient`."""

from worker import tasks
from worker.app import app

__all__ = ["app"]

tasks.IDLE_SECONDS = 1.5
