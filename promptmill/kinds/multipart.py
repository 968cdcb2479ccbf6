"""Transcriptions travel as a form, but a job's body is JSON: this is the one place where the one becomes the other.

The fields come out as the SDKs send them: lists as `name[]`, once for each element; objects as `name[key]`; booleans as
`true` and `false`; numbers as they were written; null not at all.
"""

import msgspec
from msgspec import Raw

from promptmill.errors import UsageError
from promptmill.kinds import lenient

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_LIST = msgspec.json.Decoder(list[Raw])
_STRING = msgspec.json.Decoder(str)

Fields = list[tuple[str, str]]


def multipart_fields(body: bytes) -> tuple[Fields, str | None]:
    """The form fields of a body, in its order, and the file to send with them.

    The file is what `body["file"]` says: the name of a local file, the id of a stored one ("file-…") or a base64 data
    URI, for the caller to open; a link is passed on as the text field `file` (the upstream fetches it, we never do)
    and the second value is then None.

    Raises UsageError where the body is not a JSON object.
    """
    try:
        members = lenient.decode(_OBJECT, body)
        file: str | None = None
        fields: Fields = []
        for name, value in members.items():
            if name == "file" and bytes(value)[:1] == b'"':
                file = lenient.decode(_STRING, bytes(value))
                if file.startswith(("http://", "https://")):
                    fields.append((name, file))
                    file = None
            else:
                _add(fields, name, value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body cannot be sent as a form: {error}") from error
    return fields, file


def _add(fields: Fields, name: str, value: Raw) -> None:
    text = bytes(value)
    match text[:1]:
        case b'"':
            fields.append((name, _STRING.decode(text)))
        case b"[":
            for element in _LIST.decode(text):
                _add(fields, f"{name}[]", element)
        case b"{":
            for key, inner in _OBJECT.decode(text).items():
                _add(fields, f"{name}[{key}]", inner)
        case b"n":
            pass
        case _:  # true, false and numbers
            fields.append((name, text.decode()))
