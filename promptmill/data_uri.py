"""A small file that stands in the request itself: data:audio/wav;base64,UklGR…"""

import base64
import binascii
import re
from typing import Final

PREFIX: Final = "data:"

_HEAD: Final = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*;base64", re.IGNORECASE)
#: Where the type's own name is not what files are called. Endpoints go by the file's name.
_SUFFIXES: Final = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "x-m4a": "m4a", "x-flac": "flac", "": "bin"}


def decoded(uri: str) -> tuple[str, bytes]:
    """(a file name, the content). Raises ValueError for what is not a base64 data URI.

    >>> decoded("data:audio/wav;base64,UklGRg==")
    ('file.wav', b'RIFF')
    """
    head, comma, data = uri.partition(",")
    match = _HEAD.fullmatch(head)
    if not comma or match is None:
        raise ValueError("a data URI must look like data:audio/wav;base64,…")
    subtype = match["type"].rpartition("/")[2].lower()
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the base64 of a data URI cannot be read: {error}") from error
    return f"file.{_SUFFIXES.get(subtype, subtype)}", content
