"""The Celery app: `celery -A worker.app worker -Q drain`, `… -Q maint`, `celery -A worker.app beat`.

An adapter around the drain, never a second implementation: a task runs the same coroutine as the embedded mode, in an
event loop of its own, one per slot. Settings are read when Celery first needs them, not at import.
"""

import os
from typing import Any

from celery import Celery

from promptmill.dispatch import CELERY_SETTINGS, MAINT_QUEUE, PURGE_TASK, UPKEEP_TASK
from promptmill.errors import SettingsError
from worker import announce, stop, tasks

#: Beat is a clock: it asks for upkeep so often. Every drain does it too when it is overdue.
UPKEEP_EVERY_SECONDS = 5.0
PURGE_EVERY_SECONDS = 3600.0


def _configuration() -> dict[str, Any]:
    url = os.environ.get("PROMPTMILL_REDIS_URL")
    if not url:
        raise SettingsError("PROMPTMILL_REDIS_URL is not set: Celery needs a Redis, e.g. redis://localhost:6379/0")
    return {
        **CELERY_SETTINGS,
        "broker_url": url,
        "beat_schedule": {
            "upkeep": {
                "task": UPKEEP_TASK,
                "schedule": UPKEEP_EVERY_SECONDS,
                "options": {"queue": MAINT_QUEUE, "expires": 2 * UPKEEP_EVERY_SECONDS},
            },
            "purge": {
                "task": PURGE_TASK,
                "schedule": PURGE_EVERY_SECONDS,
                "options": {"queue": MAINT_QUEUE, "expires": PURGE_EVERY_SECONDS},
            },
        },
    }


app = Celery("promptmill", set_as_current=False)
app.add_defaults(_configuration)
stop.install(app)
announce.install(app)
tasks.install(app)
