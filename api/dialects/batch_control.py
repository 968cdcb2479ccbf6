"""How a batch is handled beside others, and what it waits for: what promptmill tells of it in either dialect."""

from enum import StrEnum
from typing import Any

import msgspec

from api.openapi import schema
from promptmill.handling import FIELDS
from promptmill.job import BATCH_FINISHED
from promptmill.outlook import Outlook
from promptmill.store.batches import BatchRow
from promptmill.store.pauses import EVERYTHING, Pause, What
from promptmill.told import ForesightTold, foresight_told


class WaitsFor(StrEnum):
    """Why none of a batch's jobs is started now, or only some."""

    #: Somebody paused it, or promptmill did (`pause_reason`).
    PAUSED = "paused"
    TENANT_PAUSED = "tenant_paused"
    ALL_PAUSED = "all_paused"
    #: Its time has not come.
    NOT_BEFORE = "not_before"
    #: Its first jobs are run before the rest.
    CANARY = "canary"


class BatchControl(msgspec.Struct, kw_only=True):
    """Beside what OpenAI and Together tell. Times are unix seconds."""

    priority: int
    open: bool
    weight: float
    max_in_flight: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    budget_tokens: int | None
    budget_cost: float | None
    canary: int | None
    canary_percent: float
    canary_then: str
    not_before: float | None
    paused: bool
    pause_reason: str | None
    waits_for: WaitsFor | None
    #: Until it has ended.
    foresight: ForesightTold | None


def control_of(
    row: BatchRow, pauses: dict[tuple[What, int], Pause], now: float, outlook: Outlook | None
) -> BatchControl:
    """`pauses` are all that there are."""
    own = pauses.get((What.BATCH, row.id))
    return BatchControl(
        priority=row.priority,
        open=row.is_open,
        **{name: getattr(row, name) for name in FIELDS},
        paused=own is not None,
        pause_reason=own.reason if own is not None else None,
        waits_for=None if row.state in BATCH_FINISHED else _waits_for(row, pauses, now),
        foresight=None if outlook is None else foresight_told(outlook),
    )


def _waits_for(row: BatchRow, pauses: dict[tuple[What, int], Pause], now: float) -> WaitsFor | None:
    for named, waits_for in (
        ((What.BATCH, row.id), WaitsFor.PAUSED),
        ((What.TENANT, row.tenant_id), WaitsFor.TENANT_PAUSED),
        ((What.ALL, EVERYTHING), WaitsFor.ALL_PAUSED),
    ):
        if named in pauses:
            return waits_for
    if row.not_before is not None and row.not_before > now:
        return WaitsFor.NOT_BEFORE
    return None if row.canary_until is None else WaitsFor.CANARY


def with_control(words: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON schema of a batch in a dialect's words, and of this beside them."""
    both, ours = schema(words), schema(BatchControl)
    return {
        **both,
        "properties": {**both["properties"], **ours["properties"]},
        "required": [*both["required"], *ours["required"]],
    }
