"""OpenAI's uploads: a file that comes in parts, each in a request of its own."""

from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from api import bodies
from api.auth import Caller, CallerIs
from api.dialects.files import FILE_SCHEMA, file_object
from api.errors import invalid, not_found
from api.keeping import LEAST_SECONDS, MOST_SECONDS, PURPOSES, Purpose, check_name, purpose_of, terms
from api.openapi import answers, takes
from api.placing import add_part, gone, joined, part_file, place
from api.state import House, HouseIs
from api.uploading import MAX_NAME, file_name, receive
from promptmill.store import files, purge, uploads
from promptmill.store.files import FileRow
from promptmill.store.uploads import NewUpload, PartRow, UploadRow

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

#: OpenAI's are good for an hour; a slow line needs longer.
UPLOAD_SECONDS: Final = 24 * 3600.0
_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_MAX_PARTS: Final = 10_000


class ExpiresAfter(msgspec.Struct):
    """How long the file is kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": LEAST_SECONDS, "maximum": MOST_SECONDS})]


class Create(msgspec.Struct):
    """A file that is to come."""

    bytes: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    filename: Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_NAME})]
    mime_type: Annotated[str, msgspec.Meta(max_length=200)]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class Complete(msgspec.Struct):
    """All parts are there, and this is their order."""

    part_ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=_MAX_PARTS)]
    md5: str | None = None


_UPLOAD: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "upload"},
        "bytes": {"type": "integer"},
        "created_at": {"type": "integer"},
        "expires_at": {"type": "integer"},
        "filename": {"type": "string"},
        "purpose": {"enum": list(PURPOSES)},
        "status": {"enum": ["pending", "completed", "cancelled"]},
        "file": FILE_SCHEMA,
    },
}
_PART: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created_at", "upload_id"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "upload.part"},
        "created_at": {"type": "integer"},
        "upload_id": {"type": "string"},
    },
}
_DATA: Final = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "format": "binary"}}}


def upload_object(upload: UploadRow, file: FileRow) -> dict[str, Any]:
    """The upload as OpenAI's clients read it; `file` is in it once it is whole."""
    made = {
        "id": upload.public_id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "expires_at": int(upload.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": upload.status,
    }
    if upload.status == uploads.COMPLETED:
        made["file"] = file_object(file)
    return made


async def _existing(house: House, caller: Caller, upload_id: str) -> tuple[UploadRow, FileRow]:
    upload = await uploads.get(house.db, upload_id, tenant_id=caller.tenant_id, now=house.clock())
    if upload is None:
        raise not_found("upload", upload_id)
    return upload, await files.by_id(house.db, upload.file_id)


@router.post("", openapi_extra=takes(Create), responses=answers(_UPLOAD, 413))
async def create(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Say what is to come."""
    wanted = await bodies.decoded(request, Create, _MAX_BODY_BYTES)
    if wanted.bytes > house.settings.max_file_bytes:
        raise bodies.too_large(house.settings.max_file_bytes, "file")
    now, after = house.clock(), wanted.expires_after
    anchor, seconds = (None, None) if after is None else (after.anchor, after.seconds)
    kept_for = terms(purpose_of({"purpose": wanted.purpose}), anchor, seconds, now)
    filename = file_name(wanted.filename)
    check_name(kept_for.purpose, filename)
    new = NewUpload(
        tenant_id=caller.tenant_id, filename=filename, purpose=kept_for.purpose, size_bytes=wanted.bytes,
        expires_at=now + UPLOAD_SECONDS, file_expires_at=kept_for.expires_at, mime_type=wanted.mime_type,
    )  # fmt: skip
    upload = await uploads.create(house.db, new, now=now)
    return JSONResponse(upload_object(upload, await files.by_id(house.db, upload.file_id)))


@router.post(
    "/{upload_id}/parts",
    openapi_extra=takes(_DATA, "multipart/form-data"),
    responses=answers(_PART, 404, 409, 413, 415),
)
async def bring_part(request: Request, house: HouseIs, caller: CallerIs, upload_id: str) -> Response:
    """Bring a part. Parts may come at the same time; their order is said at the end."""
    upload, _ = await _existing(house, caller, upload_id)
    if upload.status != uploads.PENDING:
        raise gone("upload")
    left = house.settings.max_file_bytes - await uploads.part_bytes(house.db, upload.id)
    file = await part_file(house, upload)

    async def opened(_name: str, _fields: object) -> Any:
        return file

    async with file.or_nothing():
        form = await receive(request, max(0, left), opened, file_field="data")
        if not form.has_file:
            raise invalid("There is no part in the form; send it in the field `data`.", param="data")
        kept = await file.finish()
    _, public_id = await add_part(house, upload, file, kept, number=None)
    made = {"id": public_id, "object": "upload.part", "created_at": int(house.clock()), "upload_id": upload.public_id}
    return JSONResponse(made)


@router.post("/{upload_id}/complete", openapi_extra=takes(Complete), responses=answers(_UPLOAD, 404, 409, 413))
async def complete(request: Request, house: HouseIs, caller: CallerIs, upload_id: str) -> Response:
    """The parts, in this order, make the file."""
    wanted = await bodies.decoded(request, Complete, _MAX_BODY_BYTES)
    upload, announced = await _existing(house, caller, upload_id)
    if upload.status == uploads.COMPLETED:  # asked again, since the answer was lost
        return JSONResponse(upload_object(upload, announced))
    if upload.status != uploads.PENDING:
        raise gone("upload")
    pieces = _in_order(await uploads.parts(house.db, upload.id), wanted.part_ids)
    if (total := sum(part.bytes for part in pieces)) != upload.bytes:
        raise invalid(f"The parts have {total:,} bytes together; {upload.bytes:,} were announced.", param="part_ids")
    await place(house, upload, announced, joined(house, pieces), close_it=True, md5=wanted.md5)
    await purge.remove_parts(house.db, upload.id)
    return JSONResponse(upload_object(*await _existing(house, caller, upload_id)))


def _in_order(parts: list[PartRow], part_ids: list[str]) -> list[PartRow]:
    here = {part.public_id: part for part in parts}
    for part_id in part_ids:
        if part_id not in here:
            raise invalid(f"{part_id[:100]!r} is no part of this upload.", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise invalid("A part is named twice.", param="part_ids")
    return [here[part_id] for part_id in part_ids]


@router.post("/{upload_id}/cancel", responses=answers(_UPLOAD, 404, 409))
async def cancel(house: HouseIs, caller: CallerIs, upload_id: str) -> Response:
    """Nothing is left of it."""
    upload, announced = await _existing(house, caller, upload_id)
    if not await uploads.close(house.db, upload.id, uploads.CANCELLED) and upload.status != uploads.CANCELLED:
        raise gone("upload")
    await purge.remove_parts(house.db, upload.id)
    cancelled, _ = await _existing(house, caller, upload_id)
    return JSONResponse(upload_object(cancelled, announced))
