"""Single jobs, stopped and tried again."""

from typing import Final

from fastapi import APIRouter, Request, Response

from api.auth import CallerIs
from api.cancelling import CANCEL, Abort, is_abort
from api.dialects.jobs import JobObject
from api.errors import ApiError
from api.jobs import found, shown
from api.openapi import answers, takes
from api.state import HouseIs
from promptmill.intake.again import AGAIN, Again, start_again
from promptmill.job import State
from promptmill.store import aborts
from promptmill.store.aborts import Stopped

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

#: So long is waited for a call to be broken off: workers look twice a second.
_WAIT_SECONDS: Final = 1.5


@router.post(
    "/{job_id}/cancel", openapi_extra=takes(CANCEL, required=False), responses=answers(JobObject, 404, 409, 413)
)
async def cancel(job_id: str, request: Request, house: HouseIs, caller: CallerIs, abort: Abort = False) -> Response:
    """Stop a job that was not sent yet. A call that is under way ends and is kept; with `abort` it is broken off."""
    abort = await is_abort(request, abort)
    row = await found(house, caller, job_id)
    match await aborts.stop(house.db, row.key, abort=abort, now=house.clock()):
        case Stopped.DONE:
            await house.hints.finished([row.key])
        case Stopped.ASKED:
            await house.ring()
            await house.waiting.within(row.key, _WAIT_SECONDS, unless=house.closing)
        case Stopped.NOT:
            state = (await found(house, caller, job_id)).state
            if state is not State.CANCELLED:
                raise ApiError(409, _refusal(job_id, state), code="job_not_cancellable")
    return await shown(house, await found(house, caller, job_id))


def _refusal(job_id: str, state: State) -> str:
    if state is State.RUNNING:
        return f'{job_id} is running; its call ends and is kept, unless {{"abort": true}} breaks it off.'
    return f"{job_id} is {state.value}; only a job that has not ended can be cancelled."


@router.post("/{job_id}/retry", responses=answers(JobObject, 404, 409))
async def retry(job_id: str, house: HouseIs, caller: CallerIs) -> Response:
    """Try a job again that failed, expired or was cancelled. The ledger keeps its earlier attempts."""
    row = await found(house, caller, job_id)
    batch_id, position = row.key
    again = Again()
    if row.state in AGAIN:
        again = await start_again(house.db, house.settings, batch_id, positions=[position], clock=house.clock)
    if not again.retried:
        raise ApiError(
            409, f"{job_id} is {row.state.value}; only jobs that failed, expired or were cancelled are tried again.",
            code="job_not_retriable",
        )  # fmt: skip
    await house.ring()
    return await shown(house, await found(house, caller, job_id))
