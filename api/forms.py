"""A call that comes as a form (audio to transcribe) as a job's JSON body, and the file in it as a stored one.

The way back, when the job is sent, is `promptmill.kinds.multipart`.
"""

import hashlib
from typing import Any, Final

import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from api import bodies
from api.auth import Caller
from api.errors import ApiError, invalid
from api.state import House
from promptmill.store.contents import store_bytes

_MAX_FIELDS: Final = 200
#: A call's file is needed until the call is made; somebody waits for that.
_KEPT_SECONDS: Final = 7 * 86_400.0
_LINKS: Final = ("http://", "https://")


async def as_body(request: Request, house: House, caller: Caller, limit_bytes: int) -> tuple[bytes, bytes]:
    """(body as JSON, what the request is recognised by when it is sent again). Raises ApiError."""
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise ApiError(
            415, f"The body must be multipart/form-data, not {content_type[:60] or 'untyped'}.",
            code="unsupported_media_type",
        )  # fmt: skip
    data = await bodies.read(request, limit_bytes)
    form = await _form(request, data)
    try:
        body, digest = await _described(form, house, caller)
    finally:
        await form.close()
    return body, digest


async def _form(request: Request, data: bytes) -> FormData:
    async def once() -> Any:
        yield data

    parser = MultiPartParser(
        request.headers, once(), max_files=1, max_fields=_MAX_FIELDS, max_part_size=bodies.FIELD_BYTES
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        words = getattr(error, "message", None) or str(error)
        raise invalid(
            f"The form cannot be read: {words or 'it is not multipart/form-data'}.", code="invalid_form"
        ) from None


async def _described(form: FormData, house: House, caller: Caller) -> tuple[bytes, bytes]:
    body: dict[str, Any] = {}
    upload: UploadFile | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise invalid(f"The file must be in the field `file`, not {name[:60]!r}.", param=name)
            upload = value
        elif "\0" in name or "\0" in value:
            raise invalid("A field of the form has a NUL character.", param="form")
        elif name == "file" and not value.startswith(_LINKS):
            raise invalid("file must be an upload, or an http:// or https:// link.", param="file")
        else:
            _put(body, name, value)
    if upload is None:
        if "file" not in body:
            raise invalid("There is no file in the form; send it in the field `file`.", param="file")
        data = msgspec.json.encode(body)
        return data, data
    content = await upload.read()
    if not content:
        raise invalid("The file is empty.", param="file")
    digest = msgspec.json.encode([body, upload.filename, hashlib.sha256(content).hexdigest()])
    _, body["file"] = await store_bytes(
        house.db, content, filename=upload.filename or "file", purpose="_call", tenant_id=caller.tenant_id,
        now=house.clock(), expires_at=house.clock() + _KEPT_SECONDS,
    )  # fmt: skip
    return msgspec.json.encode(body), digest


def _put(body: dict[str, Any], name: str, value: str) -> None:
    """`name[]` is a list, `name[key]` an object: so `multipart_fields` writes them again."""
    if name.endswith("[]"):
        body.setdefault(name.removesuffix("[]"), []).append(value)
    elif name.endswith("]") and "[" in name:
        outer, _, key = name.removesuffix("]").partition("[")
        body.setdefault(outer, {})[key] = value
    else:
        body[name] = value
