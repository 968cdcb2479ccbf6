"""A line of JSON, read once: what it has, and where it is wrong in words that help to mend it."""

import json
import re
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from promptmill.jsonl import BLANK, BOM
from promptmill.kinds import KINDS, BodyProblem, Kind, lenient
from promptmill.request.members import last_value

#: Longest custom_id, in characters.
MAX_CUSTOM_ID: Final = 512
#: Deepest nesting of lists and objects. Every JSON reader has a limit; one of its own lets check and send agree.
MAX_DEPTH: Final = 256


class Refused(Exception):  # noqa: N818 - never leaves this package: a line that is wrong is a value outside
    """Why a line makes no job."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self.problem = BodyProblem(code, message, param)


class Fields(msgspec.Struct, kw_only=True, gc=False):
    """The fields by which a body's kind is recognised."""

    model: str | UnsetType | None = UNSET
    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    query: Raw | UnsetType = UNSET
    documents: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    voice: Raw | UnsetType = UNSET
    file: Raw | UnsetType = UNSET

    def kind(self) -> Kind | None:
        """The kind that has these fields; None where none has. (A prompt alone may also be meant for chat.)"""
        if self.messages is not UNSET:
            return KINDS["chat"]
        if self.query is not UNSET or self.documents is not UNSET:
            return KINDS["rerank"]
        if self.file is not UNSET:
            return KINDS["transcriptions"]
        if self.input is not UNSET:
            return KINDS["embeddings" if self.voice is UNSET else "speech"]
        return None if self.prompt is UNSET else KINDS["completions"]


class LineFields(Fields, kw_only=True):
    """A line: an envelope, or all the fields of a body."""

    custom_id: str | UnsetType | None = UNSET
    method: str | None = None
    url: str | None = None
    body: Raw | UnsetType = UNSET


BODY_FIELDS = msgspec.json.Decoder(Fields)
_LINE = msgspec.json.Decoder(LineFields)


class Document(NamedTuple):
    """A line's JSON object, read."""

    content: bytes
    fields: LineFields
    #: It has lone surrogates: `fields` has U+FFFD for them, and its Raw members are not what the producer wrote.
    mended: bool


def read(data: bytes) -> Document:
    """The object that a line is. Raises Refused."""
    content = utf8(data.removeprefix(BOM).strip(BLANK))
    if too_deep(content):
        raise Refused("invalid_json_line", f"lists and objects are nested more than {MAX_DEPTH} deep")
    try:
        fields, mended = lenient.decode_noting(_LINE, content)
    except msgspec.ValidationError as error:
        raise wrong_shape(error, content) from None
    except msgspec.DecodeError as error:
        raise Refused("invalid_json_line", _json_fault(content.decode(), str(error))) from None
    return Document(content, fields, mended)


def utf8(content: bytes) -> bytes:
    """`content`, when it is UTF-8. Raises Refused when not."""
    if not content.isascii():
        try:
            content.decode()
        except UnicodeDecodeError as error:
            raise Refused(
                "invalid_encoding",
                f"not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} of the line ({error.reason})",
            ) from None
    return content


# The closing quote is optional, so that a string without one is consumed too, and is not searched again from each quote
# in it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def too_deep(content: bytes) -> bool:
    """Are lists and objects nested deeper than MAX_DEPTH?"""
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _STRING.sub(b"", content).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def wrong_shape(error: msgspec.ValidationError, content: bytes) -> Refused:
    """What a validation error of a line or a body means for the line."""
    found = lenient.mismatch(error, "a line")
    match found.param:
        case "":
            hint = " (one object a line: `jq -c .[]` makes that of a list)" if content.startswith(b"[") else ""
            return Refused("invalid_json_line", found.sentence + hint)
        case "custom_id" | "method" | "url":
            return Refused(f"invalid_{found.param}", found.sentence, found.param)
        case _:
            return Refused("invalid_request", found.sentence, found.param)


_EXPECTED = {
    "Expecting value": "expected a value",
    "Expecting ',' delimiter": "expected a comma, or the end of the list or object",
    "Expecting ':' delimiter": "expected a colon",
    "Expecting property name enclosed in double quotes": "expected a field's name in double quotes",
    "Illegal trailing comma before end of object": "a comma before the end of an object",
    "Illegal trailing comma before end of array": "a comma before the end of a list",
    "Unterminated string starting at": "a string begins that has no end",
    "Invalid control character at": "a control character in a string must be written as an escape",
    "Invalid \\escape": "there is no such escape in JSON",
    "Invalid \\uXXXX escape": "\\u needs four hexadecimal digits",
    "Extra data": "expected the end of the line after its object (one object a line)",
}


#: Python's own reader takes these; they are looked for outside of strings.
_CONSTANT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(-?Infinity|NaN)', re.DOTALL)


def _refuse_constant(name: str) -> Any:
    raise ArithmeticError(name)


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=len, parse_float=len)


def _json_fault(text: str, otherwise: str) -> str:
    """Where a text stops being JSON, and what should stand there. The json module says it better than msgspec."""
    try:
        _STRICT.decode(text)
    except json.JSONDecodeError as error:
        near = text[error.pos : error.pos + 20]
        what = _EXPECTED.get(error.msg, error.msg)
        return f"not JSON at column {error.pos + 1}: {what}; there is " + (f"{near!r}" if near else "nothing more")
    except ArithmeticError as error:
        column = next((found.start() + 1 for found in _CONSTANT.finditer(text) if found[1]), 0)
        return f"not JSON at column {column}: expected a value; {error} is no number in JSON (write null)"
    return f"not JSON: {otherwise}"


def custom_id_of(document: Document) -> str | None:
    """The producer's name for the job, fit to be stored; None where it gave none. Raises Refused."""
    custom_id = document.fields.custom_id
    if custom_id is UNSET or custom_id is None:
        return None
    if document.mended:
        text = document.content.decode()
        custom_id = str(json.loads(last_value(text, "custom_id")))
    if not custom_id:
        raise Refused("invalid_custom_id", "custom_id is an empty string", "custom_id")
    if len(custom_id) > MAX_CUSTOM_ID:
        raise Refused("invalid_custom_id", f"custom_id has more than {MAX_CUSTOM_ID} characters", "custom_id")
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        raise Refused("invalid_custom_id", "custom_id has half of a surrogate pair", "custom_id") from None
    if "\0" in custom_id:
        raise Refused("invalid_custom_id", "custom_id has a NUL character", "custom_id")
    return custom_id
