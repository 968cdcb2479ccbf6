"""Request bodies: read up to a limit, and told apart from what only looks like JSON."""

import difflib
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from api.errors import ApiError, invalid
from promptmill.kinds import lenient
from promptmill.request import MAX_DEPTH, too_deep

T = TypeVar("T")

#: A body whose announced length has more digits than this was announced by nobody serious; it is counted.
_DIGITS: Final = 20
#: So like a known name is one that was misspelt.
_ALIKE: Final = 0.8
#: A field of a form that is no file.
FIELD_BYTES: Final = 1024 * 1024

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_HALF_PAIR: Final = re.compile(
    rb"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}", re.IGNORECASE
)
_VALUE: Final = msgspec.json.Decoder(Any)


async def read(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises ApiError when it is larger than the limit, or ends too soon."""
    return b"".join([chunk async for chunk in chunks(request, limit_bytes, "body")])


def media_type(request: Request) -> str:
    """The body's type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(request: Request, wanted: str) -> ApiError:
    """The body is of another type."""
    found = request.headers.get("content-type", "")[:60] or "untyped"
    return ApiError(415, f"The body must be {wanted}, not {found}.", code="unsupported_media_type")


async def chunks(request: Request, limit_bytes: int, what: str = "file") -> AsyncIterator[bytes]:
    """The body as it comes. Raises ApiError when it is larger than the limit, or ends too soon."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < _DIGITS and int(announced) > limit_bytes:
        raise too_large(limit_bytes, what)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit_bytes:
                raise too_large(limit_bytes, what)
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise invalid("The body ended before it was complete.") from None


def too_large(limit_bytes: int, what: str = "body") -> ApiError:
    """More than this server takes."""
    return ApiError(
        413, f"The {what} has more than {limit_bytes:,} bytes, which is what this server takes at most.",
        code="request_too_large",
    )  # fmt: skip


async def decoded(request: Request, wanted: type[T], limit_bytes: int) -> T:
    """The body as a value of this type (a msgspec struct). Raises ApiError, with the field, where it is not one."""
    return decode(await read(request, limit_bytes), wanted)


def decode(data: bytes, wanted: type[T]) -> T:
    """The same, of bytes."""
    check_json(data)
    try:
        value = msgspec.json.decode(data, type=wanted)
    except msgspec.ValidationError as error:
        found = lenient.mismatch(error, "the body")
        raise invalid(f"{found.sentence}.", param=found.param or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The decoder calls half of a surrogate pair cut off.
        words = "a string has half of a surrogate pair; send whole characters" if _HALF_PAIR.search(data) else error
        raise invalid(f"The body is not JSON: {words}.", code="invalid_json") from None
    if b"\\u0000" in data and _has_nul(_VALUE.decode(data)):
        raise invalid("A string in the body has a NUL character, which cannot be stored.")
    return value


def refuse_misspelt(members: Iterable[str], wanted: type[msgspec.Struct]) -> None:
    """Raise ApiError for a name that is nearly one of the type's: it would be passed over, and with it a budget or a
    cap. Other unknown ones are let be, since clients send more from version to version."""
    known = [field.encode_name for field in msgspec.structs.fields(wanted)]
    for name in members:
        if name not in known and (meant := difflib.get_close_matches(name, known, 1, _ALIKE)):
            raise invalid(f"{name[:100]!r} is not known here; is {meant[0]!r} meant?", param=name[:100])


def members_of(data: bytes) -> dict[str, msgspec.Raw]:
    """The members of a body that was decoded before."""
    return _OBJECT.decode(data)


def check_json(data: bytes) -> None:
    """What would break a reader of JSON rather than be refused by it. Raises ApiError."""
    if not data.strip():
        raise invalid("The body is empty; send JSON.", code="invalid_json")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8 (byte {error.start}).", code="invalid_json") from None
    if too_deep(data):
        raise invalid(f"The body nests lists and objects more than {MAX_DEPTH} deep.", code="invalid_json")


def check_object(data: bytes) -> None:
    """One JSON object and nothing behind it; lone surrogates are the upstream's to judge. Raises ApiError."""
    try:
        lenient.decode(_OBJECT, data)
    except msgspec.ValidationError:
        raise invalid("The body must be a JSON object.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not JSON: {error}.", code="invalid_json") from None


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(inner) for key, inner in value.items())
    return isinstance(value, list) and any(_has_nul(inner) for inner in value)
