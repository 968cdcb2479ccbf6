"""Tells workers that run elsewhere that something has changed; without Redis they see it at their next look."""

import os

from promptmill.settings import load


def ring(db_option: str | None) -> bool:
    """Wake them; False when there was nobody to tell, or Redis is away."""
    url = load(os.environ, database_url=db_option).redis_url
    if url is None:
        return False
    from promptmill.dispatch import Dispatcher  # noqa: PLC0415 - Celery is large, and only a cluster has a use for it

    return Dispatcher(url).work_arrived()
