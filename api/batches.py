"""Batches over HTTP, as OpenAI's and Together's clients know them, and a little more: waiting for the end."""

import asyncio
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from api import batch_terms, bodies, dry_run, idempotency
from api.auth import Caller, CallerIs
from api.batch_facts import facts_of
from api.batch_terms import BatchRequest
from api.dialects import Dialect, spoken
from api.dialects.batches import OPENAI_BATCH, TOGETHER_BATCH, batch_object
from api.errors import invalid, not_found
from api.openapi import IDEMPOTENCY_KEY, answers, takes
from api.pages import page, page_schema
from api.priorities import priority
from api.state import House, HouseIs
from promptmill.job import BATCH_FINISHED, BatchState
from promptmill.request import Defaults
from promptmill.store import admissions, batches, files, inputs
from promptmill.store.batches import BatchRow, NewBatch
from promptmill.store.files import FileRow

router = APIRouter(prefix="/v1/batches", tags=["batches"])

MAX_WAIT_SECONDS: Final = 600.0
#: A body of a few names; its metadata is the most of it.
_MAX_BODY_BYTES: Final = 1024 * 1024
#: Who waits is told at once by a hint; where none comes, after this long.
_LOOK_SECONDS: Final = 1.0
_BETWEEN_LOOKS_SECONDS: Final = 0.1
_PURPOSES: Final = {"batch": Dialect.OPENAI, "batch-api": Dialect.TOGETHER}

BATCH_SCHEMA: Final = {"anyOf": [OPENAI_BATCH, TOGETHER_BATCH]}
_CREATED: Final = {
    "type": "object",
    "required": ["job", "warning"],
    "properties": {"job": TOGETHER_BATCH, "warning": {"type": "string"}},
}
_PAGE: Final = {"anyOf": [page_schema(OPENAI_BATCH), {"type": "array", "items": TOGETHER_BATCH}]}


@router.post(
    "",
    openapi_extra=takes(batch_terms.BODY, parameters=[IDEMPOTENCY_KEY]),
    responses={
        **answers(_CREATED, status=201),
        **answers({"anyOf": [OPENAI_BATCH, dry_run.DRY_RUN_SCHEMA]}, 409, 413),
    },
)
async def create(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Make a batch of an uploaded file. Its lines are checked afterwards: a batch whose file is wrong ends `failed`,
    with what is wrong on which line, and nothing of it is sent. `dry_run`: none is made; its lines are checked at once,
    and what is to be expected of them is told."""
    data = await bodies.read(request, _MAX_BODY_BYTES)
    wanted = bodies.decode(data, BatchRequest)
    bodies.refuse_misspelt(bodies.members_of(data), BatchRequest)
    if wanted.dry_run:
        source = await _input_file(house, caller, wanted)
        one_endpoint = _dialect_of(request, source) is Dialect.OPENAI
        return await dry_run.answer(house, caller, wanted, source, one_endpoint=one_endpoint)
    key = idempotency.key_of(request)
    async with idempotency.once(house, caller, key, data) as made:
        if made is None:
            row = await _make(request, house, caller, wanted, key)
            if row.state is BatchState.VALIDATING:
                house.admitter.admit(row.id)
        else:
            row = await find(house, caller, made["id"])
    dialect = _words(request, row)
    told = await _told(house, row, dialect)
    if dialect is Dialect.TOGETHER:
        return JSONResponse({"job": told, "warning": ""}, status_code=201)
    return JSONResponse(told)


async def _make(request: Request, house: House, caller: Caller, wanted: BatchRequest, key: str | None) -> BatchRow:
    now = house.clock()
    handled = batch_terms.handling_asked(wanted)
    window, deadline = batch_terms.window_of(wanted, now, handled.not_before)
    path = batch_terms.path_of(wanted)
    source = await _input_file(house, caller, wanted)
    terms: dict[str, Any] = {
        "defaults": Defaults(model=wanted.model_id, endpoint=path).to_json(),
        "priority": priority(wanted.priority),
        "handling": handled,
        "deadline": deadline,
        "max_attempts": house.settings.max_attempts,
        "tenant_id": caller.tenant_id,
        "is_open": wanted.open,
        "endpoint": path,
        "completion_window": window,
        "metadata": batch_terms.metadata_of(wanted.metadata),
        "output_expires_seconds": batch_terms.output_seconds_of(wanted),
        "dialect": _dialect_of(request, source).value,
    }
    async with house.db.write() as connection:
        if source is None:
            file_id = await files.insert_file(
                connection, filename="jobs.jsonl", purpose=inputs.OWN_PURPOSE, tenant_id=caller.tenant_id, now=now
            )
            new = NewBatch(file_id=file_id, source="added jobs", **terms)
            row = await batches.insert_batch(connection, new, state=BatchState.IN_PROGRESS, now=now)
        else:
            until = now + admissions.HELD_SECONDS
            new = NewBatch(
                file_id=source.id, source=source.filename, validator=house.holder, validator_until=until, **terms
            )
            row = await batches.insert_batch(connection, new, state=BatchState.VALIDATING, now=now)
        if key is not None:
            await idempotency.keep(connection, caller, key, {"id": row.public_id})
    return row


async def _input_file(house: House, caller: Caller, wanted: BatchRequest) -> FileRow | None:
    """What the batch is made of; a file whose lines were found wrong too, since it is the batch that fails then."""
    if wanted.input_file_id is None:
        if wanted.open:
            return None
        raise invalid("input_file_id is missing.", param="input_file_id", code="missing_required_parameter")
    found = await files.get(house.db, wanted.input_file_id, tenant_id=caller.tenant_id, now=house.clock())
    if found is None:
        raise invalid(
            f"There is no file {wanted.input_file_id[:100]!r}; upload it first, with purpose batch.",
            param="input_file_id", code="file_not_found",
        )  # fmt: skip
    if found.purpose not in _PURPOSES:
        raise invalid(
            f"The file {found.public_id} is of purpose {found.purpose}; a batch is made of one of purpose batch "
            "(or batch-api).",
            param="input_file_id", code="invalid_file_purpose",
        )  # fmt: skip
    return found


@router.get("", responses=answers(_PAGE))
async def list_batches(
    request: Request,
    house: HouseIs,
    caller: CallerIs,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int | None, Query(ge=1, le=100, description="20, where it is not given.")] = None,
) -> Response:
    """Batches, the newest first; all of them at once for Together's clients, who know no pages."""
    below = None
    if after is not None:
        last = await batches.by_public_id(house.db, after, tenant_id=caller.tenant_id)
        if last is None:
            raise invalid(f"after: no batch {after[:100]!r}; give the last id of the page before.", param="after")
        below = last.id
    if spoken(request) is Dialect.TOGETHER:
        return JSONResponse(await _all_of(house, caller, below, limit))
    size = limit or _PAGE_ROWS
    rows = await batches.listed(house.db, tenant_id=caller.tenant_id, below=below, limit=size + 1)
    shown = [batch_object(facts, Dialect.OPENAI) for facts in await facts_of(house, rows[:size])]
    return JSONResponse(page(shown, has_more=len(rows) > size))


_PAGE_ROWS: Final = 20
_ROWS_AT_ONCE: Final = 100


async def _all_of(house: House, caller: Caller, below: int | None, limit: int | None) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    while limit is None or len(told) < limit:
        size = _ROWS_AT_ONCE if limit is None else limit - len(told)
        rows = await batches.listed(house.db, tenant_id=caller.tenant_id, below=below, limit=size)
        told += [batch_object(facts, Dialect.TOGETHER) for facts in await facts_of(house, rows)]
        if len(rows) < size:
            break
        below = rows[-1].id
    return told


@router.get("/{batch_id}", responses=answers(BATCH_SCHEMA, 404))
async def retrieve(
    batch_id: str,
    request: Request,
    house: HouseIs,
    caller: CallerIs,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0,
) -> Response:
    """How far the batch is. `wait`: for so many seconds, until it has ended."""
    row = await reached(house, caller, batch_id)
    if wait and row.state not in BATCH_FINISHED:
        row = await _ended(house, row, wait)
    return await answer(request, house, row)


async def _ended(house: House, row: BatchRow, seconds: float) -> BatchRow:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    with house.waiting.batch(row.id) as event:
        while row.state not in BATCH_FINISHED and loop.time() < until and not house.closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_SECONDS, until - loop.time())):
                    await event.wait()
                    await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)  # jobs end by the hundred
            event.clear()
            row = await batches.get(house.db, row.id)
    return row


async def find(house: House, caller: Caller, batch_id: str) -> BatchRow:
    """The caller's batch. Raises ApiError."""
    return await _found(house, batch_id, tenant_id=caller.tenant_id)


async def reached(house: House, caller: Caller, batch_id: str) -> BatchRow:
    """The batch that the caller may look at and control: its own; who has an admin's key anybody's. Raises ApiError."""
    has_admin_key = caller.is_admin and caller.key_id is not None
    return await _found(house, batch_id, tenant_id=None if has_admin_key else caller.tenant_id)


async def _found(house: House, batch_id: str, *, tenant_id: int | None) -> BatchRow:
    row = await batches.by_public_id(house.db, batch_id, tenant_id=tenant_id)
    if row is None or row.is_inbox:
        raise not_found("batch", batch_id)
    return row


async def answer(request: Request, house: House, row: BatchRow) -> Response:
    """The batch, bare."""
    return JSONResponse(await _told(house, row, _words(request, row)))


async def _told(house: House, row: BatchRow, dialect: Dialect) -> dict[str, Any]:
    (facts,) = await facts_of(house, [row])
    return batch_object(facts, dialect)


def _words(request: Request, row: BatchRow) -> Dialect:
    return _spoken_or(request, None if row.dialect is None else Dialect(row.dialect))


def _dialect_of(request: Request, source: FileRow | None) -> Dialect:
    """That of a new batch of this file."""
    return _spoken_or(request, None if source is None else _PURPOSES[source.purpose])


def _spoken_or(request: Request, otherwise: Dialect | None) -> Dialect:
    """What the caller's client speaks; where it does not say, what the batch's file was uploaded as."""
    named = "openai" in request.headers.get("user-agent", "").lower()
    return spoken(request) if named or otherwise is None or spoken(request) is Dialect.TOGETHER else otherwise
