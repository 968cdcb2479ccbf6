"""Batches while they run: paused and resumed, stopped, changed, and their jobs tried again. All of it is promptmill's
but `cancel`, which is OpenAI's and Together's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from msgspec import UNSET, UnsetType
from starlette.responses import JSONResponse, Response

from api import bodies
from api.auth import CallerIs
from api.batch_terms import WINDOW, metadata_of
from api.batches import BATCH_SCHEMA, answer, reached
from api.cancelling import CANCEL, Abort, is_abort
from api.errors import ApiError, invalid
from api.handling_terms import HANDLING, HandlingRequest, field_refused, given
from api.jobs import METADATA
from api.openapi import answers, takes
from api.priorities import PRIORITY, priority
from api.state import House, HouseIs
from api.times import MOMENT, moment
from promptmill.errors import NotNow, UsageError
from promptmill.intake.again import AGAIN, start_again
from promptmill.job import BatchState, State, job_public_id
from promptmill.store import admissions, batches, changes, control, jobs, selection
from promptmill.store.batches import BatchRow

router = APIRouter(prefix="/v1/batches", tags=["batches"])

#: A body of a few names; many ids are the most of it.
_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
#: So long does a caller wait for what goes on behind it: a large batch takes a moment to be gone through.
_WAIT_SECONDS: Final = 0.5
MAX_SELECTED: Final = 10_000


@router.post("/{batch_id}/pause", responses=answers(BATCH_SCHEMA, 404, 409))
async def pause(batch_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Start no more of its jobs until it is resumed. Calls that are out end, and their answers are kept."""
    row = await reached(house, caller, batch_id)
    await control.pause(house.db, batch_id=row.id, now=house.clock())
    return await _told(request, house, row)


@router.post("/{batch_id}/resume", responses=answers(BATCH_SCHEMA, 404))
async def resume(batch_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Go on, whoever paused it: a caller, its canary or its budget. Resuming twice changes nothing."""
    row = await reached(house, caller, batch_id)
    await control.resume(house.db, batch_id=row.id, now=house.clock())
    return await _told(request, house, row)


@router.post(
    "/{batch_id}/cancel", openapi_extra=takes(CANCEL, required=False), responses=answers(BATCH_SCHEMA, 404, 409, 413)
)
async def cancel(
    batch_id: str,
    request: Request,
    house: HouseIs,
    caller: CallerIs,
    abort: Abort = False,
) -> Response:
    """Stop it: what was not sent is not sent any more. Calls that are out end, and their answers are kept; with `abort`
    they are broken off, which may also be asked of a batch that is cancelling already."""
    abort = await is_abort(request, abort)
    row = await reached(house, caller, batch_id)
    now = house.clock()
    if row.state is BatchState.VALIDATING and await admissions.stop(house.db, batch_id=row.id, now=now):
        house.admitter.admit(row.id)  # whose turn it is removes what was read so far
        await house.admitter.done(row.id, within_seconds=_WAIT_SECONDS)
    elif await batches.discard_left(house.db, row, now=now):
        row = replace(row, state=BatchState.CANCELLED, is_open=False, cancelling_at=now, finished_at=now)
        return await answer(request, house, row)  # a command read it in; nothing is left of it
    elif await control.cancel(house.db, batch_id=row.id, abort=abort, now=now):
        await house.ring()  # who has its calls out is to break them off
        work = control.finish_cancelling(house.db, batch_id=row.id, now=now)
        await house.admitter.chore(work, within_seconds=_WAIT_SECONDS)
    else:
        row = await batches.get(house.db, row.id)
        if row.state is BatchState.VALIDATING:
            raise NotNow(f"the lines of {row.public_id} are still being read by a command; end that")
        raise ApiError(
            409, f"The batch {row.public_id} is {row.state.value}; only one that has not ended can be cancelled.",
            code="batch_not_cancellable",
        )  # fmt: skip
    return await answer(request, house, await batches.get(house.db, row.id))


class ChangeRequest(HandlingRequest, kw_only=True, forbid_unknown_fields=True):
    """What is to be other than it was."""

    priority: int | str | UnsetType = UNSET
    completion_window: str | UnsetType = UNSET
    deadline: float | str | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET


_CHANGE: Final = {
    "type": "object",
    "properties": {
        "priority": PRIORITY,
        "completion_window": WINDOW,
        "deadline": {**MOMENT, "description": "What is not sent by then expires. Unix seconds, or RFC 3339."},
        "metadata": {"anyOf": [METADATA, {"type": "null"}]},
        **HANDLING,
    },
}


@router.post("/{batch_id}", openapi_extra=takes(_CHANGE), responses=answers(BATCH_SCHEMA, 404, 409, 413))
@router.patch("/{batch_id}", openapi_extra=takes(_CHANGE), responses=answers(BATCH_SCHEMA, 404, 409, 413))
async def change(batch_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Change a batch that has not ended. What is left out stays; null takes away what may be absent."""
    row = await reached(house, caller, batch_id)
    wanted = await bodies.decoded(request, ChangeRequest, _MAX_BODY_BYTES)
    asked = given(wanted)
    if wanted.priority is not UNSET:
        asked["priority"] = priority(wanted.priority)
    if wanted.completion_window is not UNSET:
        asked["completion_window"] = wanted.completion_window
    if wanted.deadline is not UNSET:
        asked["deadline"] = moment(wanted.deadline, "deadline")
    if wanted.metadata is not UNSET:
        asked["metadata"] = metadata_of(wanted.metadata)
    try:
        has_new_deadline = await changes.change(
            house.db, batch_id=row.id, wanted=changes.Change(**asked), now=house.clock()
        )
    except NotNow:
        raise
    except UsageError as error:
        raise field_refused(error) from None
    if has_new_deadline:
        work = changes.spread_deadline(house.db, batch_id=row.id)
        await house.admitter.chore(work, within_seconds=_WAIT_SECONDS)
    return await _told(request, house, row)


class RetryRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which jobs."""

    states: list[str] | UnsetType = UNSET
    custom_ids: list[str] | UnsetType = UNSET
    job_ids: list[str] | UnsetType = UNSET


_NAMES: Final = {"type": "array", "maxItems": MAX_SELECTED, "items": {"type": "string"}}
_RETRY: Final = {
    "type": "object",
    "properties": {
        "states": {
            "type": "array",
            "minItems": 1,
            "items": {"enum": sorted(AGAIN)},
            "description": "failed, where nothing else is said; all of these, where jobs are named.",
        },
        "custom_ids": {**_NAMES, "description": "Only these jobs."},
        "job_ids": {**_NAMES, "description": "Only these jobs, by their ids."},
    },
}
_RETRIED: Final = {
    "type": "object",
    "required": ["object", "batch_id", "retried", "left"],
    "properties": {
        "object": {"const": "batch.retry"},
        "batch_id": {"type": "string"},
        "retried": {"type": "integer", "description": "Jobs that start again."},
        "left": {
            "type": "integer",
            "description": "Jobs that keep their result: their line is not accepted, or they are named and succeeded.",
        },
    },
}


@router.post(
    "/{batch_id}/retry", openapi_extra=takes(_RETRY, required=False), responses=answers(_RETRIED, 404, 409, 413)
)
async def retry(batch_id: str, request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Try finished jobs again, each with all of its tries; the ledger keeps the earlier ones. The batch is in progress
    again."""
    data = await bodies.read(request, _MAX_BODY_BYTES)
    wanted = bodies.decode(data, RetryRequest) if data.strip() else RetryRequest()
    row = await reached(house, caller, batch_id)
    positions = await _positions(house, row, wanted)
    again = await start_again(
        house.db, house.settings, row.id, states=_states(wanted, is_selected=positions is not None),
        positions=positions, clock=house.clock,
    )  # fmt: skip
    await house.ring()
    left = again.left + again.succeeded
    told = {"object": "batch.retry", "batch_id": row.public_id, "retried": again.retried, "left": left}
    return JSONResponse(told)


def _states(wanted: RetryRequest, *, is_selected: bool) -> Sequence[State]:
    if isinstance(wanted.states, UnsetType):
        return sorted(AGAIN) if is_selected else [State.FAILED]
    unknown = [name for name in wanted.states if name not in AGAIN]
    if unknown or not wanted.states:
        raise invalid(f"states must be some of {', '.join(sorted(AGAIN))}.", param="states")
    return [State(name) for name in wanted.states]


async def _positions(house: House, row: BatchRow, wanted: RetryRequest) -> list[int] | None:
    """Of the jobs that are named; None: no job is. Raises ApiError."""
    names: dict[str, Any] = {"custom_ids": wanted.custom_ids, "job_ids": wanted.job_ids}
    named = {param: each for param, each in names.items() if each is not UNSET}
    if not named:
        return None
    for param, each in named.items():
        if len(each) > MAX_SELECTED:
            raise invalid(f"{param} has more than {MAX_SELECTED:,}; say them in several requests.", param=param)
    positions: set[int] = set()
    for job_id in named.get("job_ids", ()):
        parsed = jobs.parsed_id(job_id)
        if parsed is None or parsed[0] != row.public_id:
            raise invalid(f"{job_id[:100]!r} is no job of {row.public_id}.", param="job_ids")
        positions.add(parsed[1])
    there = await batches.with_jobs_at(house.db, row.id, sorted(positions))
    if missing := sorted(positions - there):
        job_id = job_public_id(row.public_id, missing[0])
        raise invalid(f"{row.public_id} has no job {job_id}.", param="job_ids")
    custom_ids = named.get("custom_ids", ())
    found = await selection.positions(house.db, row, custom_ids)
    for custom_id in custom_ids:
        if custom_id not in found:
            raise invalid(f"{row.public_id} has no job with custom_id {custom_id[:100]!r}.", param="custom_ids")
    return sorted(positions.union(*found.values()))


async def _told(request: Request, house: House, row: BatchRow) -> Response:
    await house.ring()
    return await answer(request, house, await batches.get(house.db, row.id))
