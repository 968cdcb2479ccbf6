"""Lines and what becomes of them, for the tests of input."""

import json
from typing import Any

from hypothesis import strategies as st

from promptmill.errors import LineError
from promptmill.jsonl import InputFormat, Line
from promptmill.request import Defaults, ParsedLine, Request, parse_line, render

ROOMY = 1 << 20
PLAIN = Defaults()
MODEL = Defaults(model="default/model")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}

PIECES = st.lists(
    st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b"a", b"{}", b"\xef\xbb\xbf", b"\r", b"word", b"\x0b"]), max_size=40
).map(b"".join)


def parsed(line: bytes | dict[str, Any], defaults: Defaults = MODEL, **options: Any) -> ParsedLine | LineError:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    options.setdefault("max_body_bytes", ROOMY)
    input_format = options.pop("input_format", InputFormat.JSON)
    return parse_line(Line(7, data), input_format, defaults, **options)


def good(line: bytes | dict[str, Any], defaults: Defaults = MODEL, **options: Any) -> tuple[ParsedLine, Request]:
    """A line that is accepted, and its request, which must agree."""
    found = parsed(line, defaults, **options)
    assert isinstance(found, ParsedLine), found
    request = render(line if isinstance(line, bytes) else json.dumps(line).encode(), found.form, defaults)
    assert (request.kind, request.path, request.model) == (found.kind, found.path, found.model)
    assert len(request.body) == found.body_bytes
    assert json.loads(request.body)["model"] == found.model
    return found, request


def bad(line: bytes | dict[str, Any], defaults: Defaults = MODEL, **options: Any) -> LineError:
    found = parsed(line, defaults, **options)
    assert isinstance(found, LineError), found
    assert found.line == 7
    return found
