"""Together's clients bring a file in steps: they say its name, PUT it to the address they are given, and look at it.

The address needs no key: it has a secret of its own, of which only a digest is kept. Very large files are PUT in
numbered parts.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api import bodies
from api.addresses import base_url
from api.auth import Caller
from api.bodies import chunks
from api.errors import invalid, not_found
from api.keeping import FILE_TYPES, LEAST_SECONDS, MOST_SECONDS, PURPOSES, check_name, check_type, terms_of
from api.openapi import in_query, refusals
from api.placing import gone, place
from api.state import House, HouseIs
from api.uploading import MAX_NAME, file_name, text
from promptmill.store import files, uploads
from promptmill.store.uploads import NewUpload, UploadRow

router = APIRouter(prefix="/v1/files", tags=["files"])

#: An address is good for so long.
ADDRESS_SECONDS: Final = 24 * 3600.0
_MAX_FORM_BYTES: Final = 64 * 1024
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_CHECKSUM: Final = {"pattern": "^([0-9a-fA-F]{64})?$", "description": "SHA-256, in hex."}
Checksum = Annotated[str, msgspec.Meta(extra_json_schema=_CHECKSUM)]

ANNOUNCEMENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["purpose", "file_name"],
    "properties": {
        "purpose": {"enum": list(PURPOSES)},
        "file_name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "file_type": {"enum": list(FILE_TYPES)},
        "checksum": {"type": "string", **_CHECKSUM},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": LEAST_SECONDS, "maximum": MOST_SECONDS},
    },
}
#: Some of its clients say it there.
IN_THE_QUERY: Final = in_query(ANNOUNCEMENT["properties"])
ELSEWHERE: Final[dict[int | str, dict[str, Any]]] = {
    302: {
        "description": "Where to PUT the file.",
        "headers": {
            "Location": {"required": True, "schema": {"type": "string"}},
            "X-Together-File-Id": {"required": True, "schema": {"type": "string"}},
        },
    }
}
BYTES: Final = {
    "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    "security": [],
}
TAKEN: Final[dict[int | str, dict[str, Any]]] = {200: {"description": "It is here."}, **refusals(404, 409, 413)}


async def urlencoded(request: Request) -> dict[str, str]:
    """The fields of a form without files. Raises ApiError."""
    data = await bodies.read(request, _MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(data.decode(), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:  # UnicodeDecodeError is one
        raise invalid("The form cannot be read.", code="invalid_form") from None
    return {text(name.encode(), "the name of a field"): text(value.encode(), f"the field {name[:60]!r}")
            for name, value in pairs}  # fmt: skip


async def begin(
    house: House, caller: Caller, fields: Mapping[str, str], token: str, *, size_bytes: int
) -> tuple[UploadRow, str]:
    """An upload with an address, and the id that its file will have. Raises ApiError."""
    now = house.clock()
    terms = terms_of(fields, now)
    filename = file_name(text(fields["file_name"].encode(errors="replace"), "file_name"))
    check_name(terms.purpose, filename)
    check_type(fields.get("file_type"))
    checksum = fields.get("checksum") or None
    if checksum is not None and not _SHA256.fullmatch(checksum):
        raise invalid("checksum must be the file's SHA-256 in hex (64 digits).", param="checksum")
    new = NewUpload(
        tenant_id=caller.tenant_id, filename=filename, purpose=terms.purpose, size_bytes=size_bytes,
        expires_at=now + ADDRESS_SECONDS, file_expires_at=terms.expires_at, token=token,
        checksum=None if checksum is None else checksum.lower(),
    )  # fmt: skip
    upload = await uploads.create(house.db, new, now=now)
    return upload, (await files.by_id(house.db, upload.file_id)).public_id


async def announce(request: Request, house: House, caller: Caller, fields: Mapping[str, str]) -> Response:
    """The first step: an address for a file of this name."""
    token = secrets.token_urlsafe(32)
    _, public_id = await begin(house, caller, fields, token, size_bytes=0)
    location = f"{base_url(request)}/v1/files/incoming/{token}"
    headers = {"Location": location, "X-Together-File-Id": public_id}
    return Response(status_code=302, headers=headers)


async def addressed(house: House, token: str) -> UploadRow:
    """The upload that has this address. Raises ApiError."""
    upload = await uploads.by_token(house.db, token, now=house.clock())
    if upload is None:
        raise not_found("address for an upload", "")
    if upload.status != uploads.PENDING:
        raise gone("address")
    return upload


@router.put("/incoming/{token}", openapi_extra=BYTES, responses=TAKEN)
async def put(request: Request, house: HouseIs, token: str) -> Response:
    """The second step: the file itself. Another PUT replaces it, until the last step or a batch has used it."""
    upload = await addressed(house, token)
    announced = await files.by_id(house.db, upload.file_id)
    body = chunks(request, house.settings.max_file_bytes)
    await place(house, upload, announced, body, close_it=False)
    return Response(status_code=200)
