"""A call that comes as a form (audio to transcribe) as a job's JSON body, and the file in it as a stored one.

The way back, when the job is sent, is `promptmill.kinds.multipart`.
"""

import hashlib
from typing import Any, Final

import msgspec
from starlette.requests import Request

from api import bodies
from api.auth import Caller
from api.errors import invalid
from api.state import House
from api.uploading import Form, receive
from promptmill.store.contents import store_bytes

#: A call's file is needed until the call is made; somebody waits for that.
_KEPT_SECONDS: Final = 7 * 86_400.0
_LINKS: Final = ("http://", "https://")


class _Held:
    """The form's file, in memory: it is one call's, and no larger than a request may be."""

    def __init__(self) -> None:
        self.name = ""
        self._chunks: list[bytes] = []

    async def feed(self, chunk: bytes) -> None:
        """More of it."""
        self._chunks.append(chunk)

    def content(self) -> bytes:
        """All of it."""
        return b"".join(self._chunks)


async def as_body(request: Request, house: House, caller: Caller, limit_bytes: int) -> tuple[bytes, bytes]:
    """(body as JSON, what the request is recognised by when it is sent again). Raises ApiError."""
    file = _Held()

    async def opened(name: str, _fields: object) -> _Held:
        file.name = name
        return file

    form = await receive(request, limit_bytes, opened, may_be_text=True, max_field_bytes=bodies.FIELD_BYTES)
    body = _fields(form)
    if not form.has_file:
        if "file" not in body:
            raise invalid("There is no file in the form; send it in the field `file`.", param="file")
        data = msgspec.json.encode(body)
        return data, data
    if "file" in body:
        raise invalid("file is there twice, as an upload and as a link; send one of them.", param="file")
    content = file.content()
    if not content:
        raise invalid("The file is empty.", param="file")
    digest = msgspec.json.encode([body, file.name, hashlib.sha256(content).hexdigest()])
    _, body["file"] = await store_bytes(
        house.db, content, filename=file.name, purpose="_call", tenant_id=caller.tenant_id, now=house.clock(),
        expires_at=house.clock() + _KEPT_SECONDS,
    )  # fmt: skip
    return msgspec.json.encode(body), digest


def _fields(form: Form) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name, value in form.pairs:
        if name == "file" and not value.startswith(_LINKS):
            raise invalid("file must be an upload, or an http:// or https:// link.", param="file")
        if not _put(body, name, value):
            raise invalid(f"The field {name[:60]!r} is there in another form already; send it in one.", param=name[:60])
    return body


def _put(body: dict[str, Any], name: str, value: str) -> bool:
    """`name[]` is a list, `name[key]` an object: so `multipart_fields` writes them again. False where it cannot be."""
    if name.endswith("[]"):
        held = body.setdefault(name.removesuffix("[]"), [])
        if isinstance(held, list):
            held.append(value)
        return isinstance(held, list)
    if name.endswith("]") and "[" in name:
        outer, _, key = name.removesuffix("]").partition("[")
        held = body.setdefault(outer, {})
        if isinstance(held, dict):
            held[key] = value
        return isinstance(held, dict)
    if isinstance(body.get(name), list | dict):
        return False
    body[name] = value
    return True
