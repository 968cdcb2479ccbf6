"""Jobs submitted over HTTP by themselves: taken in, looked at, listed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import UNSET, Raw, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse

from api import bodies, idempotency
from api.addresses import base_url
from api.auth import Caller, CallerIs
from api.call_schemas import any_call
from api.dialects.jobs import JobObject, JobPage, SubmittedObject, full_job, job_object
from api.errors import ApiError, invalid, not_found
from api.openapi import IDEMPOTENCY_KEY, answers, takes
from api.pages import page
from api.priorities import PRIORITY, priority
from api.state import House, HouseIs, at_once
from api.times import MOMENT, moment
from promptmill.errors import LineError
from promptmill.intake.inbox import Submission, Submitted
from promptmill.job import FINISHED, State
from promptmill.kinds import PATHS
from promptmill.store import batches, jobs
from promptmill.store.jobs import JobRow

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

#: Jobs of one request.
MAX_JOBS: Final = 10_000
MAX_WAIT_SECONDS: Final = 600.0
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512
METADATA: Final[dict[str, Any]] = {
    "type": "object",
    "maxProperties": _MAX_PAIRS,
    "propertyNames": {"maxLength": _MAX_NAME},
    "additionalProperties": {"type": "string", "maxLength": _MAX_VALUE},
}


class JobRequest(msgspec.Struct, kw_only=True):
    """One job. Without `body`, the whole object is the body."""

    body: Raw | UnsetType = UNSET
    url: str | None = None
    method: str | None = None
    custom_id: str | None = None
    priority: int | str | None = None
    not_before: float | str | None = None
    deadline: float | str | None = None
    metadata: dict[str, str] | None = None


class JobsRequest(JobRequest, kw_only=True):
    """One job, or many in `requests`; what stands beside them holds for all that do not say otherwise."""

    requests: list[JobRequest] | UnsetType = UNSET


#: What the OpenAPI document says of it.
_ONE: Final[dict[str, Any]] = {
    "body": any_call(),
    "url": {"enum": [*PATHS, None], "description": "The endpoint; else it is told by the body's fields."},
    "method": {"type": ["string", "null"], "enum": ["POST", None]},
    "custom_id": {"type": ["string", "null"], "maxLength": 512},
    "priority": {"anyOf": [PRIORITY, {"type": "null"}]},
    "not_before": MOMENT,
    "deadline": MOMENT,
    "metadata": {"anyOf": [METADATA, {"type": "null"}]},
}
_JOB: Final = {"type": "object", "required": ["body"], "properties": _ONE}
_JOBS: Final = {
    "type": "object",
    "required": ["requests"],
    "properties": {
        "requests": {"type": "array", "minItems": 1, "maxItems": MAX_JOBS, "items": _JOB},
        **{name: _ONE[name] for name in ("priority", "not_before", "deadline", "metadata")},
    },
}
_TAKEN: Final = {"description": "One job, many, or the body of a call alone.", "anyOf": [_JOB, _JOBS, any_call()]}


@router.post(
    "",
    status_code=202,
    openapi_extra=takes(_TAKEN, parameters=[IDEMPOTENCY_KEY]),
    responses=answers(SubmittedObject, 404, 409, 413, status=202),
)
async def submit(request: Request) -> Response:
    """Enqueue one or many jobs, all or none."""
    house, caller = await at_once(request)
    data = await bodies.read(request, house.settings.max_request_bytes)
    wanted = bodies.decode(data, JobsRequest)
    _refuse_misspelt(wanted, data)
    key = idempotency.key_of(request)
    async with idempotency.once(house, caller, key, data) as before:
        told = before
        if told is None:
            submissions = await _submissions(house, caller, wanted, data)
            many = not isinstance(wanted.requests, UnsetType)

            async def keep(connection: AsyncConnection, made: Sequence[Submitted]) -> None:
                if key is not None:
                    await idempotency.keep(connection, caller, key, _told(submissions, made, house.clock(), many=many))

            made = await house.inbox.submit(submissions, also=keep)
            told = _told(submissions, made, house.clock(), many=many)
    return _accepted(request, told)


def _refuse_misspelt(wanted: JobsRequest, data: bytes) -> None:
    if isinstance(wanted.body, UnsetType) and isinstance(wanted.requests, UnsetType):
        return  # the whole object is a body: its fields are the upstream's
    members = bodies.members_of(data)
    bodies.refuse_misspelt(members, JobsRequest)
    if not isinstance(wanted.requests, UnsetType):
        for one in msgspec.json.decode(members["requests"], type=list[dict[str, Raw]]):
            bodies.refuse_misspelt(one, JobRequest)


def _told(submissions: Sequence[Submission], made: Sequence[Submitted], now: float, *, many: bool) -> dict[str, Any]:
    ids = [one.public_id for one in made]
    data = [
        {"id": one.public_id, "object": "job", "status": _begins(submission, now).value}
        for submission, one in zip(submissions, made, strict=True)
    ]
    return {"object": "list", "data": data, "ids": ids} if many else {**data[0], "ids": ids}


def _begins(submission: Submission, now: float) -> State:
    return State.WAITING if submission.not_before is not None and submission.not_before > now else State.READY


def _accepted(request: Request, told: Mapping[str, Any]) -> Response:
    first = told["ids"][0]
    named = jobs.parsed_id(first)
    together = f"?batch_id={named[0]}" if named is not None and "id" not in told else f"/{first}"
    location = f"{base_url(request)}/v1/jobs{together}"
    body = msgspec.json.encode(told)
    return Response(body, status_code=202, headers={"Location": location}, media_type="application/json")


async def _submissions(house: House, caller: Caller, wanted: JobsRequest, data: bytes) -> list[Submission]:
    if isinstance(wanted.requests, UnsetType):
        if isinstance(wanted.body, UnsetType):
            wanted = JobsRequest(body=Raw(data.strip()))  # the whole object is the body: nothing else was meant
        return [await _submission(house, caller, wanted, wanted, "")]
    if not isinstance(wanted.body, UnsetType):
        raise invalid("Send `body` for one job or `requests` for many, not both.", param="requests")
    if not wanted.requests:
        raise invalid("requests is empty: there is nothing to do.", param="requests")
    if len(wanted.requests) > MAX_JOBS:
        raise invalid(f"requests has more than {MAX_JOBS:,} jobs; make a batch of a file of them.", param="requests")
    submissions = []
    for index, one in enumerate(wanted.requests):
        if isinstance(one.body, UnsetType):
            raise invalid(f"requests[{index}] has no body.", param=f"requests[{index}].body")
        submissions.append(await _submission(house, caller, one, wanted, f"requests[{index}]."))
    return submissions


async def _submission(house: House, caller: Caller, one: JobRequest, shared: JobRequest, where: str) -> Submission:
    envelope = msgspec.json.encode(
        {name: value for name in ("custom_id", "method", "url") if (value := getattr(one, name)) is not None}
        | {"body": one.body}
    )
    found = await house.inbox.checked(caller.tenant_id, envelope)
    if isinstance(found, LineError):
        raise line_refused(found, where)
    parsed, lane_id = found
    now = house.clock()
    deadline = moment(one.deadline if one.deadline is not None else shared.deadline, "deadline")
    if deadline is not None and deadline <= now:
        raise invalid("deadline has passed already.", param=f"{where}deadline")
    metadata = one.metadata if one.metadata is not None else shared.metadata
    check_metadata(metadata, f"{where}metadata")
    return Submission(
        tenant_id=caller.tenant_id,
        line=envelope,
        parsed=parsed,
        lane_id=lane_id,
        priority=priority(one.priority if one.priority is not None else shared.priority),
        not_before=moment(one.not_before if one.not_before is not None else shared.not_before, "not_before"),
        deadline=deadline,
        metadata=metadata,
    )


def line_refused(error: LineError, where: str = "") -> ApiError:
    """A request that makes no job, as an answer."""
    status = {"model_not_found": 404, "line_too_large": 413}.get(error.code, 400)
    words = error.message[:1].upper() + error.message[1:]
    named = where.removesuffix(".")
    return ApiError(
        status, f"{named}: {error.message}." if named else f"{words}.", code=error.code,
        param=f"{where}{error.param}" if error.param else named or None,
    )  # fmt: skip


def check_metadata(metadata: Mapping[str, str] | None, param: str = "metadata") -> None:
    """OpenAI's bounds. Raises ApiError."""
    if metadata is None:
        return
    if len(metadata) > _MAX_PAIRS:
        raise invalid(f"metadata has more than {_MAX_PAIRS} pairs.", param=param)
    for name, value in metadata.items():
        if len(name) > _MAX_NAME or len(value) > _MAX_VALUE:
            raise invalid(f"metadata: keys have at most {_MAX_NAME} characters, values {_MAX_VALUE}.", param=param)


# ---------------------------------------------------------------------- one job


@router.get("/{job_id}", responses=answers(JobObject, 404))
async def retrieve(
    job_id: str, house: HouseIs, caller: CallerIs, wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0
) -> Response:
    """The job: its state, its attempts with their reasons, and its result. `wait`: for so many seconds, until it is
    finished."""
    row = await found(house, caller, job_id)
    if wait and row.state not in FINISHED:
        await house.waiting.within(row.key, wait, unless=house.closing)
        row = await found(house, caller, job_id)
    return await shown(house, row)


@router.get("", responses=answers(JobPage, 404))
async def list_jobs(
    house: HouseIs,
    caller: CallerIs,
    status: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    batch_id: Annotated[str | None, Query(description="Only jobs of this batch; else those submitted singly.")] = None,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Jobs, the newest first."""
    batch = None
    if batch_id is not None:
        batch = await batches.by_public_id(house.db, batch_id, tenant_id=caller.tenant_id)
        if batch is None:
            raise not_found("batch", batch_id)
    behind = None
    if after is not None:
        last = await jobs.get(house.db, after, tenant_id=caller.tenant_id)
        if last is None:
            raise invalid(f"after: no job {after[:100]!r}; give the last id of the page before.", param="after")
        behind = last.key
    rows = await jobs.listed(
        house.db, tenant_id=caller.tenant_id, batch_id=batch.id if batch else None, after=behind,
        states=None if status is None else [status], limit=limit + 1,
    )  # fmt: skip
    return JSONResponse(page([job_object(row) for row in rows[:limit]], has_more=len(rows) > limit))


async def found(house: House, caller: Caller, job_id: str) -> JobRow:
    """The caller's job. Raises ApiError."""
    row = await jobs.get(house.db, job_id, tenant_id=caller.tenant_id)
    if row is None:
        raise not_found("job", job_id)
    return row


async def shown(house: House, row: JobRow) -> Response:
    """The job as an answer."""
    return Response(await full_job(house.db, row), media_type="application/json")
