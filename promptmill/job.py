"""A job's life, written down once: its states, who moves it on, and what happens if that process dies.

                    ┌───────────── retry staged ─────────────┐
                    ▼                                        │
    (intake) ──► ready ──claim──► running ──retry later──► waiting
                    ▲                │ │
                    └─ given back ───┘ └──answered──► succeeded | failed
                       (shutdown, reaped worker)
    ready, waiting, running ──► cancelled | expired       (intake) ──► invalid

An unfinished job is a row of `jobs`. A finished job is a row of `results`, and has left `jobs` in the same
transaction: so there is no moment at which a job has both or neither.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a job is. The comment says who moves it on, and what happens if that process dies."""

    #: May be claimed. A drain moves it on; if none is alive it stays, and nothing is lost.
    READY = "ready"
    #: Not before `not_before`: a scheduled start or a retry. Upkeep makes it ready; any drain does upkeep.
    WAITING = "waiting"
    #: Owned by (worker_id, epoch). The owner records its outcome; if the owner's heartbeat stops, the reaper of
    #: any other process makes it ready again and the old owner's later writes match nothing.
    RUNNING = "running"
    #: The upstream answered and the answer is kept.
    SUCCEEDED = "succeeded"
    #: It will not be tried again by itself; the reason and the upstream's own error are kept.
    FAILED = "failed"
    #: Somebody asked for it to stop.
    CANCELLED = "cancelled"
    #: Its deadline passed before it was answered.
    EXPIRED = "expired"
    #: The input line was wrong and the producer asked to skip such lines; it was never sent. A retry checks it again.
    INVALID = "invalid"


UNFINISHED = frozenset({State.READY, State.WAITING, State.RUNNING})
FINISHED = frozenset(State) - UNFINISHED

#: Every move there is. The store has one method per arrow; a test holds the two together.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.READY: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.WAITING: frozenset({State.READY, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset(
        {State.READY, State.WAITING, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED}
    ),
    # A finished job starts again only where somebody asks for it (retry); the ledger keeps the earlier attempts.
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.READY}),
    State.CANCELLED: frozenset({State.READY}),
    State.EXPIRED: frozenset({State.READY}),
    State.INVALID: frozenset({State.READY}),
}


class BatchState(StrEnum):
    """Where a batch is; the names are those of OpenAI's batch object, and mean the same."""

    #: Its input is being read and checked. None of its jobs may be claimed. If intake dies, the batch stays
    #: here and the next intake of the same input starts over; one of the HTTP door's is taken over by any API process.
    VALIDATING = "validating"
    #: The input was wrong; nothing was sent.
    FAILED = "failed"
    #: Its jobs may be claimed.
    IN_PROGRESS = "in_progress"
    #: Somebody asked to stop; running calls are ending.
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    #: Every job is finished, and the completion window closed before some of them were answered.
    EXPIRED = "expired"
    #: Every job is finished, and no more can be added.
    COMPLETED = "completed"


BATCH_ACTIVE = frozenset({BatchState.IN_PROGRESS, BatchState.CANCELLING})
BATCH_FINISHED = frozenset({BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED, BatchState.COMPLETED})


class LaneState(StrEnum):
    """What is known about a lane (upstream x model)."""

    #: Nothing has succeeded yet: a handful of calls at most.
    UNKNOWN = "unknown"
    #: Calls succeed: up to its limits.
    OPEN = "open"
    #: Refused for a reason that waiting does not mend (key, money, model): no calls until somebody resumes it.
    HALTED = "halted"


def job_public_id(batch_public_id: str, position: int) -> str:
    """The job's name outside: unguessable because the batch's is, and free, because nothing is stored for it.

    >>> job_public_id("batch_4f1c", 17)
    'job_4f1c-17'
    """
    return f"job_{batch_public_id.removeprefix('batch_')}-{position}"


def answer_file_id(batch_public_id: str, position: int) -> str:
    """What a job's answer is called as a file, where it is audio or a picture.

    >>> answer_file_id("batch_4f1c", 17)
    'file-4f1c-17'
    """
    return f"file-{batch_public_id.removeprefix('batch_')}-{position}"
