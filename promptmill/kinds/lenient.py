"""Bodies and answers are other people's JSON, and msgspec is stricter than JSON in one place: lone surrogates.

`"\\ud83d"` with no second half is legal JSON (RFC 8259, section 8.2) and turns up wherever text was cut in the middle
of an emoji. msgspec refuses it even in fields that it skips. Here such an escape is replaced by `\\ufffd` and the
decode repeated: both have six bytes, so lengths and offsets stay those of the original, and the original is what is
kept and sent. Everything else that JSON allows (NUL escapes, huge numbers, a key given twice) msgspec takes as it is.
"""

import re
from typing import NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

# Each escape is consumed whole, so that the second backslash of `\\ud800` (a backslash and five letters) is never
# taken for the start of one. A pair of surrogates is consumed whole too: what group 1 then sees is alone.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)

_MISSING = re.compile(r"Object missing required field `([^`]+)`(?: - at `\$\.?(.*)`)?")
_MISMATCH = re.compile(r"Expected `(.+?)`, got `(.+?)`(?: - at `\$\.?(.*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`(?: - at `\$\.?(.*)`)?")
_ELSEWHERE = re.compile(r"(.+?)(?: - at `\$\.?(.*)`)?")

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def mended(data: bytes) -> bytes:
    """`data` with `\\ufffd` in place of every lone surrogate escape; equal to `data` where there is none.

    >>> mended(rb'{"a": "\\ud83d", "b": "\\ud83d\\ude00", "c": "\\\\ud83d"}')
    b'{"a": "\\\\ufffd", "b": "\\\\ud83d\\\\ude00", "c": "\\\\\\\\ud83d"}'
    """
    return _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], data)


def decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """`decoder.decode(data)`, with lone surrogates read as U+FFFD; raises what `decode_noting` raises."""
    return decode_noting(decoder, data)[0]


def decode_noting(decoder: msgspec.json.Decoder[T], data: bytes) -> tuple[T, bool]:
    """The same, and whether there were lone surrogates: then Raw members are not what was written.

    Raises msgspec.ValidationError (JSON of another shape), msgspec.DecodeError (not JSON), UnicodeDecodeError (a string
    that was decoded is not UTF-8; skipped strings are not looked at) or RecursionError (nested too deeply).
    """
    try:
        return decoder.decode(data), False
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        again = mended(data)
        if again == data:
            raise
        return decoder.decode(again), True


class Mismatch(NamedTuple):
    """What a msgspec.ValidationError says, for people: `param` is "" where the whole value is meant."""

    param: str
    sentence: str
    missing: bool


def mismatch(error: msgspec.ValidationError, whole: str) -> Mismatch:
    """Puts msgspec's sentence into words that need no knowledge of it; `whole` names the value that was decoded.

    A required field that is null counts as missing: that is what writers of JSON mean by it.
    """
    text = str(error)
    if found := _MISSING.fullmatch(text):
        field, within = found[1], found[2] or ""
        param = f"{within}.{field}" if within else field
        return Mismatch(param, f"{param} is missing", missing=True)
    if found := _MISMATCH.fullmatch(text):
        param = found[3] or ""
        if found[2] == "null":
            return Mismatch(param, f"{param or whole} is null", missing=True)
        expected = _any_of(found[1].split(" | "))
        return Mismatch(param, f"{param or whole} must be {expected}, not {_any_of([found[2]])}", missing=False)
    if found := _UNKNOWN.fullmatch(text):
        param = f"{found[2]}.{found[1]}" if found[2] else found[1]
        return Mismatch(param, f"{param} is not known here", missing=False)
    found = _ELSEWHERE.fullmatch(text)
    param = (found[2] or "") if found else ""
    return Mismatch(param, f"{param or whole}: {found[1] if found else text}", missing=False)


def _any_of(names: list[str]) -> str:
    wanted = [name for name in names if name != "null"] or names
    return " or ".join(_WORDS.get(name, name) for name in wanted)
