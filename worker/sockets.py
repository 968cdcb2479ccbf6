"""A call in flight is a socket, and systems allow a process 1,024 of them unless it asks for more."""

import logging
import resource
from typing import Final

from promptmill.settings import Settings

log = logging.getLogger("promptmill.worker")

#: Files, databases, listeners: what a process needs beside its calls.
_SPARE: Final = 256


def allow_sockets(settings: Settings) -> None:
    """Raise the process's soft limit to what the upstreams' calls in flight need, as far as the hard limit allows."""
    wanted = sum(upstream.max_in_flight for upstream in settings.upstreams) + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "only %d open sockets are allowed here, %d calls in flight need more: raise ulimit -n", allowed, wanted
        )
