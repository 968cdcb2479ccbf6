"""Together's way to bring a very large file: addresses for its parts, which are PUT in any order, and joined."""

import secrets
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from api import bodies
from api.addresses import base_url
from api.auth import Caller, CallerIs
from api.dialects import spoken
from api.dialects.files import FILE_SCHEMA, file_object
from api.errors import invalid, not_found
from api.keeping import FileType, Purpose
from api.openapi import answers, takes
from api.placing import gone, joined, keep_part, place
from api.state import House, HouseIs
from api.together_files import BYTES, TAKEN, Checksum, addressed, begin
from api.uploading import MAX_NAME
from promptmill.store import files, purge, uploads
from promptmill.store.files import FileRow
from promptmill.store.uploads import UploadRow

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_PARTS: Final = 10_000
_MAX_BODY_BYTES: Final = 4 * 1024 * 1024


class Initiate(msgspec.Struct):
    """A very large file that is to come."""

    file_name: Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_NAME})]
    file_size: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    num_parts: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)]
    purpose: Purpose
    file_type: FileType | None = None
    checksum: Checksum | None = None


class Piece(msgspec.Struct):
    """One part, as it was answered when it was PUT."""

    part_number: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)]
    etag: str


class Complete(msgspec.Struct):
    """All parts are there."""

    upload_id: str
    file_id: str
    parts: Annotated[list[Piece], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]


class Abort(msgspec.Struct):
    """They are not coming."""

    upload_id: str
    file_id: str


_INITIATED: Final = {
    "type": "object",
    "required": ["upload_id", "file_id", "parts"],
    "properties": {
        "upload_id": {"type": "string"},
        "file_id": {"type": "string"},
        "parts": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["PartNumber", "URL", "Headers"],
                "properties": {
                    "PartNumber": {"type": "integer"},
                    "URL": {"type": "string"},
                    "Headers": {"type": "object"},
                },
            },
        },
    },
}
_COMPLETED: Final = {"type": "object", "required": ["file"], "properties": {"file": FILE_SCHEMA}}


@router.post("/multipart/initiate", openapi_extra=takes(Initiate), responses=answers(_INITIATED, 413))
async def initiate(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Addresses for the parts of a very large file."""
    wanted = await bodies.decoded(request, Initiate, _MAX_BODY_BYTES)
    if wanted.file_size > house.settings.max_file_bytes:
        raise bodies.too_large(house.settings.max_file_bytes, "file")
    given = {name: value for name, value in msgspec.to_builtins(wanted).items() if isinstance(value, str)}
    token = secrets.token_urlsafe(32)
    upload, public_id = await begin(house, caller, given, token, size_bytes=wanted.file_size)
    base = f"{base_url(request)}/v1/files/incoming/{token}"
    parts = [{"PartNumber": n, "URL": f"{base}/{n}", "Headers": {}} for n in range(1, wanted.num_parts + 1)]
    return JSONResponse({"upload_id": upload.public_id, "file_id": public_id, "parts": parts})


@router.put("/incoming/{token}/{number}", openapi_extra=BYTES, responses=TAKEN)
async def put_part(request: Request, house: HouseIs, token: str, number: str) -> Response:
    """One part; another PUT of its number replaces it. The answer's ETag says what came."""
    upload = await addressed(house, token)
    if not number.isascii() or not number.isdecimal() or not 1 <= int(number[:9]) <= MAX_PARTS:
        raise not_found("part", number)
    etag, _ = await keep_part(request, house, upload, number=int(number))
    return Response(status_code=200, headers={"ETag": f'"{etag}"'})


@router.post("/multipart/complete", openapi_extra=takes(Complete), responses=answers(_COMPLETED, 404, 409, 413))
async def complete(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """The parts make the file."""
    wanted = await bodies.decoded(request, Complete, _MAX_BODY_BYTES)
    upload, announced = await _mine(house, caller, wanted.upload_id, wanted.file_id)
    if upload.status == uploads.COMPLETED:  # asked again, since the answer was lost
        return JSONResponse({"file": file_object(announced, spoken(request))})
    if upload.status != uploads.PENDING:
        raise gone("upload")
    here = {part.number: part for part in await uploads.parts(house.db, upload.id)}
    pieces = []
    for number, piece in enumerate(sorted(wanted.parts, key=lambda piece: piece.part_number), 1):
        part = here.get(piece.part_number)
        if piece.part_number != number or part is None or part.etag != piece.etag.strip('"'):
            raise invalid(f"Part {number} is missing, doubled, or not the one that came.", param="parts")
        pieces.append(part)
    if (total := sum(part.bytes for part in pieces)) != upload.bytes:
        raise invalid(f"The parts have {total:,} bytes together; {upload.bytes:,} were announced.", param="parts")
    row = await place(house, upload, announced, joined(house, pieces), close_it=True)
    await purge.remove_parts(house.db, upload.id)
    return JSONResponse({"file": file_object(row, spoken(request))})


@router.post("/multipart/abort", openapi_extra=takes(Abort), responses=answers({"type": "object"}, 404, 409, 413))
async def abort(request: Request, house: HouseIs, caller: CallerIs) -> Response:
    """Nothing is left of it."""
    wanted = await bodies.decoded(request, Abort, _MAX_BODY_BYTES)
    upload, _ = await _mine(house, caller, wanted.upload_id, wanted.file_id)
    if upload.status == uploads.COMPLETED:
        raise gone("upload")
    await uploads.close(house.db, upload.id, uploads.CANCELLED)
    await purge.remove_parts(house.db, upload.id)
    return JSONResponse({"upload_id": upload.public_id, "file_id": wanted.file_id})


async def _mine(house: House, caller: Caller, upload_id: str, file_id: str) -> tuple[UploadRow, FileRow]:
    upload = await uploads.get(house.db, upload_id, tenant_id=caller.tenant_id, now=house.clock())
    if upload is None:
        raise not_found("upload", upload_id)
    row = await files.by_id(house.db, upload.file_id)
    if row.public_id != file_id:
        raise not_found("file", file_id)
    return upload, row
