"""Files over HTTP: brought, listed, read and deleted, as OpenAI's and Together's clients do it."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from api import content, together_files
from api.auth import Caller, CallerIs
from api.bodies import media_type, unsupported
from api.dialects import Dialect, spoken
from api.dialects.files import DELETED_SCHEMA, FILE_SCHEMA, LIST_SCHEMA, deleted, file_object
from api.errors import invalid, not_found
from api.keeping import PURPOSES, FormFile
from api.openapi import answers, header, refusals, takes
from api.pages import page
from api.ranges import content_response
from api.state import House, HouseIs
from api.uploading import Form
from promptmill.intake.kept import is_lines
from promptmill.store import files, uploads
from promptmill.store.files import FileRow

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_LIMIT: Final = 10_000

_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(PURPOSES)},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
        "file_name": {"type": "string"},
        "file_type": {"enum": ["jsonl", "csv", "parquet"]},
    },
}
#: Together's clients send the name of a file alone.
_FORM_OR_NAME: Final = {
    **_FORM,
    "required": ["purpose"],
    "properties": {**together_files.ANNOUNCEMENT["properties"], **_FORM["properties"]},
    "anyOf": [{"required": ["file"]}, {"required": ["file_name"]}],
}
_FORM_TYPE, _URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
_FILE: Final = answers(FILE_SCHEMA, 404)
#: Lines, whatever was uploaded, or an answer as the upstream called it.
_RAW: Final[dict[str, Any]] = {"application/jsonl": {}, "application/octet-stream": {}, "*/*": {}}


@router.post(
    "",
    openapi_extra={
        "requestBody": {
            "content": {
                _FORM_TYPE: {"schema": _FORM_OR_NAME},
                _URLENCODED: {"schema": together_files.ANNOUNCEMENT},
            }
        },
        "parameters": together_files.IN_THE_QUERY,
    },
    responses={**answers(FILE_SCHEMA, 413, 415), **together_files.ELSEWHERE},
)
async def create(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Bring a file, with what it is for. Its lines are looked at on the way: where some are wrong, `status` is
    `error` and `status_details` says which.

    Without a file, but with its name, this is the first step of Together's clients: the answer is the address to
    which they PUT it.
    """
    kind = media_type(request)
    if kind == _FORM_TYPE:
        taken = await FormFile(house, caller).take(request)
        if isinstance(taken, FileRow):
            return JSONResponse(file_object(taken, spoken(request)))
        fields = {**request.query_params, **taken.fields}
    elif kind == _URLENCODED:
        fields = {**request.query_params, **await together_files.urlencoded(request)}
    elif not kind and "file_name" in request.query_params:
        fields = dict(request.query_params)
    else:
        raise unsupported(request, _FORM_TYPE)
    if "file_name" not in fields:
        raise invalid("There is no file in the form; send it in the field `file`.", param="file")
    return await together_files.announce(request, house, caller, fields)


@router.post("/upload", openapi_extra=takes(_FORM, _FORM_TYPE), responses=answers(FILE_SCHEMA, 413, 415))
async def upload(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Bring a file in one request, by the path of Together's specification."""
    taken = await FormFile(house, caller).take(request)
    if isinstance(taken, Form):
        raise invalid("There is no file in the form; send it in the field `file`.", param="file")
    return JSONResponse(file_object(taken, spoken(request)))


@router.get("", responses=answers(LIST_SCHEMA))
async def listing(
    request: Request,
    house: HouseIs,
    caller: CallerIs,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Response:
    """The files, the newest first. Together's clients know no pages: they are given all."""
    now, tenant_id, dialect = house.clock(), caller.tenant_id, spoken(request)
    if dialect is Dialect.TOGETHER:
        rows = await files.listed(house.db, tenant_id=tenant_id, now=now)
        return JSONResponse(_page(rows, dialect, has_more=False))
    cursor = None
    if after is not None:
        found = await files.get(house.db, after, tenant_id=tenant_id, now=now)
        if found is None:
            raise invalid(f"There is no file {after[:100]!r} to list from.", param="after", code="unknown_cursor")
        cursor = found.id
    if purpose is not None and "\0" in purpose:
        raise invalid("The purpose has a NUL character.", param="purpose")
    rows = await files.listed(
        house.db, tenant_id=tenant_id, now=now, purpose=purpose, after=cursor, limit=limit + 1,
        ascending=order == "asc",
    )  # fmt: skip
    return JSONResponse(_page(rows[:limit], dialect, has_more=len(rows) > limit))


def _page(rows: list[FileRow], dialect: Dialect, *, has_more: bool) -> dict[str, Any]:
    return page([file_object(row, dialect) for row in rows], has_more=has_more)


async def _existing(house: House, caller: Caller, file_id: str) -> FileRow:
    row = await files.get(house.db, file_id, tenant_id=caller.tenant_id, now=house.clock())
    if row is None:
        raise not_found("file", file_id)
    return row


@router.get("/{file_id}", responses=_FILE)
async def retrieve(request: Request, house: HouseIs, caller: CallerIs, file_id: str) -> Response:
    """What is known of a file."""
    if content.is_answer_id(file_id):
        row = (await content.answer_of(house, caller, file_id)).row
    else:
        row = await _existing(house, caller, file_id)
    return JSONResponse(file_object(row, spoken(request)))


@router.delete("/{file_id}", responses=answers(DELETED_SCHEMA, 404))
async def delete(house: HouseIs, caller: CallerIs, file_id: str) -> Response:
    """Nobody sees the file any more. A batch that was made of it goes on."""
    row = await _existing(house, caller, file_id)
    if not await files.delete(house.db, row.id, now=house.clock()):
        raise not_found("file", file_id)
    return JSONResponse(deleted(row.public_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    openapi_extra={"parameters": [header("Range", "One range of bytes, like bytes=0-99.")]},
    responses={
        200: {"description": "The bytes, as they came.", "content": _RAW},
        206: {"description": "The range that was asked for.", "content": _RAW},
        **refusals(404, 416),
    },
)
async def read(request: Request, house: HouseIs, caller: CallerIs, file_id: str) -> Response:
    """The content of a file: all of it, or a range. A batch's results can be read while it still runs."""
    if content.is_answer_id(file_id):
        return (await content.answer_of(house, caller, file_id)).response(request)
    row = await _existing(house, caller, file_id)
    if row.batch_id is not None:
        return await content.result_file(request, house, row)
    return content_response(
        request,
        chunks_from=lambda start: files.content(house.db, row.id, start),
        size=row.bytes,
        media_type="application/jsonl" if is_lines(row.filename) else "application/octet-stream",
        filename=row.filename,
    )


@router.post("/{file_id}/preprocess", responses=_FILE)
async def preprocess(request: Request, house: HouseIs, caller: CallerIs, file_id: str) -> Response:
    """The last step of Together's clients: the file is as it is to be. (It was looked at while it came.)"""
    row = await _existing(house, caller, file_id)
    found = await uploads.of_file(house.db, row.id, now=house.clock())
    if found is not None:
        await uploads.close(house.db, found.id, uploads.COMPLETED)
    return JSONResponse(file_object(row, spoken(request)))
