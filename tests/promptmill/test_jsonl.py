"""From bytes to requests: nothing is lost in cutting lines, and what was checked is what is sent."""

import gzip
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from promptmill.errors import LineError, UsageError
from promptmill.jsonl import (
    DuplicateFinder,
    InputFormat,
    Line,
    LineCutter,
    detect_format,
    open_input,
    read_lines,
)
from promptmill.kinds import PATHS
from promptmill.request import MAX_DEPTH, Defaults, Form, ParsedLine, Request, parse_line, render
from promptmill.request.document import read
from promptmill.request.forms import form_of
from promptmill.request.members import last_value, members, without

ROOMY = 1 << 20
PLAIN = Defaults()
MODEL = Defaults(model="default/model")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
DOCS = Path(__file__).parents[2] / "docs" / "input.md"


def lines_of(*chunks: bytes, most: int = ROOMY) -> list[Line]:
    return list(read_lines(chunks, most))


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return (data[a:b] for a, b in pairwise(edges))


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


# Lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", []),
        (b" \r\n\t\n", []),
        (b"\xef\xbb\xbf\n\n", []),
        (b"a", [(1, b"a")]),
        (b"a\n", [(1, b"a\n")]),
        (b"a\nb", [(1, b"a\n"), (2, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a\r\n"), (2, b"b\r\n")]),
        (b"a\n\n \r\nb\n", [(1, b"a\n\n \r\n"), (4, b"b\n")]),
        (b"\n\n a\n", [(3, b"\n\n a\n")]),
        (b"\xef\xbb\xbfa\nb\n", [(1, b"\xef\xbb\xbfa\n"), (2, b"b\n")]),
        (b"\xef\xbb\xbf\na\n", [(2, b"\xef\xbb\xbf\na\n")]),
        (b"a\n\n\n", [(1, b"a\n\n\n")]),
        (b"a\n   ", [(1, b"a\n   ")]),
        (b"a\rb\n", [(1, b"a\rb\n")]),
        (b"a\x0b\x0c\x1c\x85b\n", [(1, b"a\x0b\x0c\x1c\x85b\n")]),
        (b"\x0b\n", [(1, b"\x0b\n")]),
        ("a\u2028b\n".encode(), [(1, "a\u2028b\n".encode())]),
    ],
)
def test_lines_are_cut_at_newlines_only_and_keep_what_is_blank(content, lines):
    assert [(line.number, line.data) for line in lines_of(content)] == lines
    one_by_one = lines_of(*(bytes([byte]) for byte in content))
    assert [(line.number, line.data) for line in one_by_one] == lines


PIECES = st.lists(
    st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b"a", b"{}", b"\xef\xbb\xbf", b"\r", b"word", b"\x0b"]), max_size=40
).map(b"".join)


@given(PIECES | st.binary(max_size=200), st.lists(st.integers(0, 300)))
def test_the_lines_together_are_the_content_however_it_is_cut(content, places):
    lines = lines_of(*cut(content, places))
    assert lines == lines_of(content)
    if content.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n"):
        assert b"".join(line.data for line in lines) == content
    else:
        assert lines == []
    numbers = [line.number for line in lines]
    assert numbers == sorted(set(numbers))
    assert not any(line.too_long for line in lines)


@given(PIECES, st.lists(st.integers(0, 300)), st.integers(1, 30))
def test_no_line_is_longer_than_the_limit_says(content, places, most):
    expected: list[tuple[int, bytes]] = []
    before = b""
    for number, data in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", content), 1):
        if len(data) > most or data.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip(b" \t\r\n"):
            expected.append((number, before + data))
            before = b""
        elif expected:
            expected[-1] = (expected[-1][0], expected[-1][1] + data)
        else:
            before += data
    assert lines_of(*cut(content, places), most=most) == [
        Line(number, data[:most], too_long=len(data) > most) for number, data in expected
    ]


def test_a_line_that_is_too_long_is_not_held():
    def endless() -> Iterator[bytes]:
        yield b"a\n"
        for _ in range(1_000):
            yield b"x" * 100_000
        yield b"x\nb\n"
        for _ in range(1_000):
            yield b"\n" * 1_000

    first, second, third = read_lines(endless(), 1_000)
    assert (first, second.number, second.too_long, len(second.data)) == (Line(1, b"a\n"), 2, True, 1_000)
    assert (third.number, third.too_long, len(third.data)) == (3, True, 1_000)


# Files

CONTENT = b'{"prompt": "one"}\n{"prompt": "two"}\n' * 3_000


def taken(name: str | Path) -> bytes:
    with open_input(str(name)) as chunks:
        return b"".join(chunks)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("stored", "content"),
    [
        (CONTENT, CONTENT),
        (b"", b""),
        (b"{", b"{"),
        (gzip.compress(CONTENT), CONTENT),
        (gzip.compress(CONTENT) + gzip.compress(b"more\n"), CONTENT + b"more\n"),
        (gzip.compress(b"") + gzip.compress(b"more\n"), b"more\n"),
        (gzip.compress(CONTENT) + b"\0" * 100, CONTENT),
        (gzip.compress(b""), b""),
        (zstd(CONTENT), CONTENT),
        (zstd(CONTENT) + zstd(b"more\n"), CONTENT + b"more\n"),
        (SKIPPABLE + zstd(CONTENT) + SKIPPABLE + zstd(b"more\n"), CONTENT + b"more\n"),
        (zstandard.ZstdCompressor(write_content_size=False).compressobj().compress(b"x") or b"x", b"x"),
        (b"\x1f\x8b in a text is not gzip"[1:], b"\x1f\x8b in a text is not gzip"[1:]),
    ],
)
@pytest.mark.parametrize("name", ["input.jsonl", "input.jsonl.gz", "input"])
def test_compression_is_recognised_by_the_content(tmp_path, stored, content, name):
    (tmp_path / name).write_bytes(stored)
    assert taken(tmp_path / name) == content


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_file_cut_off_anywhere_is_said_to_be_cut_off(tmp_path, compress):
    stored = compress(CONTENT)
    path = tmp_path / "input.gz"
    for length in [5, 20, len(stored) // 2, len(stored) - 1]:
        path.write_bytes(stored[:length])
        with pytest.raises(UsageError, match=rf"cut off.*byte {length:,} of the file"):
            taken(path)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (gzip.compress(CONTENT)[:40] + b"rubbish" * 500, r"gzip data are damaged near byte"),
        (gzip.compress(CONTENT)[:-8] + b"\0" * 8, r"gzip data are damaged .* after 108,000 bytes of content|damaged"),
        (gzip.compress(CONTENT) + b"rubbish", r"gzip data are damaged near byte"),
        (zstd(CONTENT)[:60] + b"\xff" * 500, r"zstandard data are damaged near byte"),
        (zstd(CONTENT) + b"rubbish", r"zstandard data are damaged near byte"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff\x00{\x00}", "UTF-16"),
        ("{}".encode("utf-32"), "UTF-16 or UTF-32"),
        (gzip.compress("{}".encode("utf-16")), "UTF-16"),
        (b"PK\x03\x04 and so on and so on", "zip archive"),
        (b"\xfd7zXZ\x00 and so on", "xz"),
        (b"BZh91AY&SY and so on", "bzip2"),
        (b"PAR1 and so on", "Parquet"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, stored, words):
    path = tmp_path / "input"
    path.write_bytes(stored)
    with pytest.raises(UsageError, match=words) as raised:
        taken(path)
    assert str(path) in str(raised.value)


def test_what_cannot_be_opened_is_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="there is no such file"):
        taken(tmp_path / "missing.jsonl")
    with pytest.raises(UsageError, match="is a directory"):
        taken(tmp_path)
    with pytest.raises(UsageError, match="cannot be opened"):
        taken("a\0b")

    def refuse(*_args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match="permission denied"):
        taken(tmp_path / "secret.jsonl")


def test_a_file_that_fails_while_it_is_read_is_told(monkeypatch):
    class Failing(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Failing()}))
    with pytest.raises(UsageError, match=r"standard input cannot be read: .*Input/output error"):
        taken("-")


@pytest.mark.parametrize("stored", [CONTENT, gzip.compress(CONTENT), zstd(CONTENT)])
def test_standard_input_is_read_and_left_open(monkeypatch, stored):
    stdin = io.BytesIO(stored)
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stdin}))
    assert taken("-") == CONTENT
    assert not stdin.closed


def test_a_pipe_that_gives_a_byte_at_a_time_is_recognised_too(monkeypatch):
    class Dripping(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            return super().read(1)

    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Dripping(gzip.compress(b"content\n"))}))
    assert taken("-") == b"content\n"


@given(st.lists(st.binary(max_size=500), max_size=4), st.booleans())
def test_members_and_frames_are_joined(tmp_path_factory, contents, use_zstd):
    path = tmp_path_factory.mktemp("joined") / "input"
    compress = zstd if use_zstd else gzip.compress
    path.write_bytes(b"".join(compress(b"x" + content) for content in contents))
    assert taken(path) == b"".join(b"x" + content for content in contents)


@pytest.mark.parametrize(
    ("name", "first", "found"),
    [
        ("a.jsonl", b"text", InputFormat.JSON),
        ("a.JSONL", b"text", InputFormat.JSON),
        ("a.ndjson", b"", InputFormat.JSON),
        ("a.json", b"[", InputFormat.JSON),
        ("dir.txt/a.jsonl.gz", b"", InputFormat.JSON),
        ("a.jsonl.zst", b"", InputFormat.JSON),
        ("a.txt", b'{"prompt": "x"}', InputFormat.TEXT),
        ("a.txt.gz", b"{", InputFormat.TEXT),
        ("a.gz", b'{"prompt": "x"}', InputFormat.JSON),
        ("-", b'{"prompt": "x"}', InputFormat.JSON),
        ("-", b'\xef\xbb\xbf\n\n {"prompt": "x"}', InputFormat.JSON),
        ("-", b"Why is the sky blue?", InputFormat.TEXT),
        ("prompts", b"Why?", InputFormat.TEXT),
        ("a.csv", b"a,b", InputFormat.TEXT),
        (".jsonl", b"text", InputFormat.TEXT),
    ],
)
def test_the_format_is_told_by_the_name_and_else_by_the_first_line(name, first, found):
    assert detect_format(name, first) is found


# Defaults


@pytest.mark.parametrize(
    "defaults",
    [
        Defaults(),
        Defaults("m"),
        Defaults("m", "/v1/embeddings"),
        Defaults("m", "rerank/", {"temperature": 0.5, "stop": ["\n"], "x": {"ü": None}}),
    ],
)
def test_defaults_survive_being_stored(defaults):
    again = Defaults.from_json(defaults.to_json())
    assert again == defaults
    assert again.written == defaults.written
    assert json.loads(defaults.to_json()) == {
        name: getattr(defaults, name)
        for name in ("model", "endpoint", "parameters")
        if getattr(defaults, name) is not None
    }
    hash(defaults)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": ""}, "default model"),
        ({"model": "a\0"}, "default model"),
        ({"model": "a\udc80"}, "default model"),
        ({"endpoint": "/v1/responses"}, "/v1/responses.*must be /v1/chat/completions, "),
        ({"parameters": {"temperature": float("nan")}}, "temperature is not JSON"),
        ({"parameters": {"x": object()}}, "x is not JSON"),
        ({"parameters": {"x": "\udc80"}}, "x is not JSON"),
        ({"parameters": {"model": "m"}}, "model cannot be a default parameter"),
        ({"parameters": {"messages": []}}, "messages cannot be a default parameter"),
    ],
)
def test_impossible_defaults_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Defaults(**arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        b"\xff",
        '{"model": 5}',
        '{"made_by": "another version"}',
        '{"parameters": []}',
        '{"endpoint": "/x"}',
    ],
)
def test_what_are_no_defaults_is_refused(text):
    with pytest.raises(UsageError):
        Defaults.from_json(text)


# What lines become

FORMS = [
    # line, defaults, (custom_id, form, path, model), body
    (
        b'{"custom_id":"a", "method":"POST", "url":"/rerank", "body": {"model":"m", "query": "", "documents":[""]} }\n',
        PLAIN,
        ("a", Form.ENVELOPE, "/v1/rerank", "m"),
        b'{"model":"m", "query": "", "documents":[""]}',
    ),
    (  # Together's: neither method nor url
        b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user"}]}}',
        PLAIN,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{"body": {"model": "m", "prompt": "a"}}',
        PLAIN,
        (None, Form.ENVELOPE, "/v1/completions", "m"),
        b'{"model": "m", "prompt": "a"}',
    ),
    (
        b'{"custom_id": "a", "body": {"model": "m", "prompt": "a cat"}}',
        Defaults(endpoint="/v1/images/generations"),
        ("a", Form.ENVELOPE, "/v1/images/generations", "m"),
        b'{"model": "m", "prompt": "a cat"}',
    ),
    (  # a url of its own wins over the default
        b'{"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}',
        Defaults(endpoint="/v1/images/generations"),
        (None, Form.ENVELOPE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a"}',
    ),
    (
        b'{"url": "/v1/v1/audio/generations/", "method": "post", "body": {"model": "m", "input": "a", "voice": "b"}}',
        PLAIN,
        (None, Form.ENVELOPE, "/v1/audio/generations", "m"),
        b'{"model": "m", "input": "a", "voice": "b"}',
    ),
    (  # the default model goes to the front, the rest stays as it is
        b'{"custom_id": "a", "body": { "messages": [{"role": "user"}] }}',
        MODEL,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model", "messages": [{"role": "user"}] }',
    ),
    (  # null is no model
        b'{"custom_id": "a", "body": {"n": 1, "model": null, "messages": [{"role": "user"}]}}',
        MODEL,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model","n": 1, "messages": [{"role": "user"}]}',
    ),
    (  # the last of two is what everybody reads
        b'{"custom_id": "a", "custom_id": "b", "body": {}, "body": {"model": "m", "model": "o", "input": "a"}}',
        PLAIN,
        ("b", Form.ENVELOPE, "/v1/embeddings", "o"),
        b'{"model": "m", "model": "o", "input": "a"}',
    ),
    (
        b'{"model": "m", "messages": [{"role": "user"}]}',
        PLAIN,
        (None, Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{"custom_id": "a", "model": "m", "messages": [{"role": "user"}]}',
        PLAIN,
        ("a", Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{ "messages" : [{"role": "user", "custom_id": 1}] ,\t"custom_id" : "a" }',
        MODEL,
        ("a", Form.BARE, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model", "messages" : [{"role": "user", "custom_id": 1}] }',
    ),
    (
        rb'{"custom_id": "a", "model": "m", "custom\u005fid": "b", "messages": [{"role": "user"}]}',
        PLAIN,
        ("b", Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "messages": [{"role": "user"}]}',
    ),
    (
        b'{"custom_id": null, "model": "m", "query": "q", "documents": ["d"]}',
        PLAIN,
        (None, Form.BARE, "/v1/rerank", "m"),
        b'{"model": "m", "query": "q", "documents": ["d"]}',
    ),
    (
        b'{"model": "m", "input": "a", "voice": "b"}',
        PLAIN,
        (None, Form.BARE, "/v1/audio/speech", "m"),
        b'{"model": "m", "input": "a", "voice": "b"}',
    ),
    (
        b'{"model": "m", "input": "a"}',
        PLAIN,
        (None, Form.BARE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a"}',
    ),
    (
        b'{"model": "m", "file": "a.mp3", "prompt": "names: Ada"}',
        PLAIN,
        (None, Form.BARE, "/v1/audio/transcriptions", "m"),
        b'{"model": "m", "file": "a.mp3", "prompt": "names: Ada"}',
    ),
    (  # not a string: not a chat message
        b'{"model": "m", "prompt": ["a", "b"]}',
        PLAIN,
        (None, Form.BARE, "/v1/completions", "m"),
        b'{"model": "m", "prompt": ["a", "b"]}',
    ),
    (
        b'{"model": "m", "prompt": "a"}',
        Defaults(endpoint="/v1/completions"),
        (None, Form.BARE, "/v1/completions", "m"),
        b'{"model": "m", "prompt": "a"}',
    ),
    (
        b'{"prompt": "a cat", "width": 512}',
        Defaults("i", "/v1/images/generations", {"steps": 4}),  # a body of the producer's stays the producer's
        (None, Form.BARE, "/v1/images/generations", "i"),
        b'{"model":"i","prompt": "a cat", "width": 512}',
    ),
    (
        b'{"prompt": "Hi \\u00e9\\n", "custom_id": "a"}',
        MODEL,
        ("a", Form.PROMPT, "/v1/chat/completions", "default/model"),
        b'{"model":"default/model","messages":[{"role":"user","content":"Hi \\u00e9\\n"}]}',
    ),
    (
        b'{"temperature" : 0.50, "prompt": "Hi", "model": "m", "stop": ["a"]}',
        Defaults("d", "/v1/chat/completions", {"temperature": 1, "top_p": 0.95}),
        (None, Form.PROMPT, "/v1/chat/completions", "m"),
        b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"temperature" : 0.50,"stop": ["a"],"top_p":0.95}',
    ),
    (  # messages and a prompt: the messages are meant
        b'{"model": "m", "prompt": "Hi", "messages": [{"role": "user"}]}',
        PLAIN,
        (None, Form.BARE, "/v1/chat/completions", "m"),
        b'{"model": "m", "prompt": "Hi", "messages": [{"role": "user"}]}',
    ),
    # Legal JSON that not every reader likes goes on as it came.
    (
        rb'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "\ud83d\u0000"}]}}',
        PLAIN,
        ("a", Form.ENVELOPE, "/v1/chat/completions", "m"),
        rb'{"model": "m", "messages": [{"role": "user", "content": "\ud83d\u0000"}]}',
    ),
    (
        rb'{"body": {"x": "\ufffd"}, "y": "\udc00", "body": {"input": "\ud800"}, "custom_id": "a"}',
        MODEL,
        ("a", Form.ENVELOPE, "/v1/embeddings", "default/model"),
        rb'{"model":"default/model","input": "\ud800"}',
    ),
    (
        '{"custom_id": "ä", "prompt": "ö\\ud800", "x": "\\udc00", "stop": "ü"}'.encode(),
        MODEL,
        ("ä", Form.PROMPT, "/v1/chat/completions", "default/model"),
        (
            '{"model":"default/model","messages":[{"role":"user","content":"ö\\ud800"}],"x": "\\udc00","stop": "ü"}'
        ).encode(),
    ),
    (
        '{"input": "ö\\ud800", "custom_id": "ä", "\\udc00": 123456789012345678901234567890}'.encode(),
        MODEL,
        ("ä", Form.BARE, "/v1/embeddings", "default/model"),
        '{"model":"default/model","input": "ö\\ud800", "\\udc00": 123456789012345678901234567890}'.encode(),
    ),
    (
        b'{"model": "m", "input": "a", "x": 1e999, "y": ' + b"9" * 4_000 + b"}",
        PLAIN,
        (None, Form.BARE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a", "x": 1e999, "y": ' + b"9" * 4_000 + b"}",
    ),
    (  # as read_lines hands over the first line of a file
        b'\xef\xbb\xbf\r\n \n {"model": "m", "input": "a"} \r\n\n',
        PLAIN,
        (None, Form.BARE, "/v1/embeddings", "m"),
        b'{"model": "m", "input": "a"}',
    ),
]


@pytest.mark.parametrize(("line", "defaults", "facts", "body"), FORMS)
def test_a_line_becomes_a_request(line, defaults, facts, body):
    found, request = good(line, defaults)
    assert (found.custom_id, found.form, found.path, found.model) == facts
    assert request.body == body
    assert request.kind == PATHS[request.path].name


@pytest.mark.parametrize(
    ("line", "defaults", "path", "body"),
    [
        (
            b"Why is the sky blue?\n",
            MODEL,
            "/v1/chat/completions",
            {"model": "default/model", "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
        ),
        (
            '\ufeff\n  \n  "Grüße"\\ \t\r\n \n'.encode(),
            Defaults("m", "/chat/completions", {"temperature": 0.5}),
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": '  "Grüße"\\ \t'}], "temperature": 0.5},
        ),
        (
            b'{"prompt": "not read"}',
            MODEL,
            "/v1/chat/completions",
            {"model": "default/model", "messages": [{"role": "user", "content": '{"prompt": "not read"}'}]},
        ),
        (b"a\0b", Defaults("m", "/v1/completions"), "/v1/completions", {"model": "m", "prompt": "a\0b"}),
        (b"a cat", Defaults("m", "images/generations"), "/v1/images/generations", {"model": "m", "prompt": "a cat"}),
        (b"text", Defaults("m", "/v1/embeddings"), "/v1/embeddings", {"model": "m", "input": "text"}),
        (
            b"Hello",
            Defaults("m", "/v1/audio/speech", {"voice": "alloy"}),
            "/v1/audio/speech",
            {"model": "m", "input": "Hello", "voice": "alloy"},
        ),
    ],
)
def test_a_line_of_text_becomes_a_request(line, defaults, path, body):
    found, request = good(line, defaults, input_format=InputFormat.TEXT)
    assert (found.custom_id, found.form, found.path) == (None, Form.TEXT, path)
    assert json.loads(request.body) == body


def test_the_facts_of_a_line_are_those_of_its_body():
    body = {"messages": [{"role": "user", "content": "word " * 400}], "max_tokens": 10, "n": 2}
    found, request = good({"custom_id": "a", "body": body})
    assert (found.kind, found.max_tokens, found.body_bytes) == ("chat", 20, len(request.body))
    assert 500 <= found.prompt_tokens <= 510


CHAT_LINE = json.dumps(CHAT).encode()
DEEP = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)

#: line, code, param, words of the message
WRONG: list[tuple[bytes, str, str | None, str]] = [
    (b"Why is the sky blue?", "invalid_json_line", None, "column 1: expected a value; there is 'Why is the sky blue?'"),
    (b'{"prompt": "Hi"', "invalid_json_line", None, "column 16: expected a comma, or the end of the list or object"),
    (b'{"prompt": "Hi}', "invalid_json_line", None, "column 12: a string begins that has no end"),
    (b'{"prompt" "Hi"}', "invalid_json_line", None, "column 11: expected a colon"),
    (b"{'prompt': 'Hi'}", "invalid_json_line", None, "column 2: expected a field's name in double quotes"),
    (b'{"prompt": "Hi",}', "invalid_json_line", None, "column 1"),
    (b'{"prompt": "a\tb"}', "invalid_json_line", None, "column 14: a control character"),
    (rb'{"prompt": "a\qb"}', "invalid_json_line", None, "column 14: there is no such escape"),
    (rb'{"prompt": "a\u12"}', "invalid_json_line", None, "four hexadecimal digits"),
    (b'{"prompt": "a"}{"prompt": "b"}', "invalid_json_line", None, "column 16: expected the end of the line"),
    (b'{"prompt": "NaN", "x": NaN}', "invalid_json_line", None, "column 24: expected a value; NaN is no number"),
    (b'{"x": [-Infinity], "prompt": ""}', "invalid_json_line", None, "column 8: expected a value; -Infinity is no"),
    (b"[1, 2]", "invalid_json_line", None, "a line must be an object, not a list (one object a line"),
    (b'"text"', "invalid_json_line", None, "a line must be an object, not a string"),
    (b"null", "invalid_json_line", None, "a line is null"),
    (b'\n\n {"prompt": "\xc3\xa4" x}', "invalid_json_line", None, "column 16: expected a comma"),
    (b'{"prompt": ' + b"[" * 300 + b"]" * 300 + b"}", "invalid_json_line", None, "nested more than 256 deep"),
    (b'{"prompt": "a", "x": [' + DEEP + b"]}", "invalid_json_line", None, "nested more than 256 deep"),
    (b"[" * 1_000_000, "invalid_json_line", None, "nested more than 256 deep"),
    (b'{"a":' * 100_000, "invalid_json_line", None, "nested more than 256 deep"),
    (b'{"prompt": "a\xffb"}', "invalid_encoding", None, "byte 0xff at offset 13 of the line"),
    (b'\n{"prompt": "a", "x": "\xe4"}', "invalid_encoding", None, "byte 0xe4 at offset 22 of the line"),
    (b'{"p\x00r\x00', "invalid_json_line", None, "column 4: a control character"),
    (b'{"custom_id": "a"}', "missing_required_parameter", "messages", "not clear what is asked"),
    (b'{"custom_id": "a", "url": "/v1/embeddings"}', "missing_required_parameter", "body", "body is missing"),
    (b'{"custom_id": "a", "body": null}', "missing_required_parameter", "body", "body is missing"),
    (b'{"custom_id": "a", "body": "text"}', "invalid_request", "body", "body must be an object"),
    (b'{"custom_id": "a", "body": {}}', "missing_required_parameter", "messages", "not clear what is asked"),
    (b'{"method": "GET", "body": ' + CHAT_LINE + b"}", "invalid_method", "method", "must be POST, not 'GET'"),
    (b'{"method": 5, "body": ' + CHAT_LINE + b"}", "invalid_method", "method", "method must be a string"),
    (b'{"url": "/v1/responses", "body": {}}', "invalid_url", "url", "'/v1/responses' is not known: it must be /v1/"),
    (b'{"url": "", "body": {}}', "invalid_url", "url", "is not known"),
    (b'{"url": 5, "body": {}}', "invalid_url", "url", "url must be a string, not an integer"),
    (b'{"custom_id": 5, "prompt": "Hi"}', "invalid_custom_id", "custom_id", "custom_id must be a string, not an"),
    (b'{"custom_id": "", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "empty"),
    (b'{"custom_id": "' + b"a" * 513 + b'", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "more than 512"),
    (rb'{"custom_id": "a\u0000", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "NUL"),
    (rb'{"custom_id": "a\ud83d", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "surrogate"),
    (b'{"model": 5, "prompt": "Hi"}', "invalid_request", "model", "model must be a string, not an integer"),
    (b'{"body": {"model": 5, "messages": []}}', "invalid_request", "model", "model must be a string, not an integer"),
    (b'{"model": "", "prompt": "Hi"}', "invalid_request", "model", "empty"),
    (rb'{"model": "m\ud83d", "prompt": "Hi"}', "invalid_request", "model", "cannot be printed"),
    (b'{"messages": []}', "invalid_request", "messages", "messages is empty"),
    (b'{"messages": [{}]}', "missing_required_parameter", "messages[0].role", "messages[0].role is missing"),
    (b'{"query": "q"}', "missing_required_parameter", "documents", "documents is missing"),
    (b'{"prompt": 5}', "invalid_request", "prompt", "prompt must be"),
    (b'{"prompt": "Hi", "stream": true}', "stream_not_supported", "stream", "remove stream"),
    (b'{"body": {"messages": [{"role": "user"}], "stream": true}}', "stream_not_supported", "stream", "remove stream"),
    (b'{"prompt": "Hi", "n": 0}', "invalid_request", "n", "at least 1"),
    (b'{"prompt": "' + b"a" * ROOMY + b'"}', "line_too_large", "body", "the limit is 1,048,576"),
]


@pytest.mark.parametrize(("line", "code", "param", "words"), WRONG)
def test_what_is_wrong_with_a_line_is_told(line, code, param, words):
    found = bad(line)
    assert (found.code, found.param) == (code, param)
    assert words in found.message or (words == "column 1" and re.search(r"column 1\d: ", found.message))
    assert "`" not in found.message.replace("`jq -c .[]`", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": [{"role": "user"}]}', 'add "model" to the body, or name one for all lines'),
        (b'{"messages": [{"role": "user"}], "model": null}', 'add "model" to the body, or name one for all lines'),
        (b'{"body": {"messages": [{"role": "user"}]}}', 'add "model" to the body, or name one for all lines'),
        (b'{"prompt": "Hi"}', "--model"),
    ],
)
def test_a_missing_model_is_told(line, words):
    found = bad(line, PLAIN)
    assert (found.code, found.param) == ("missing_required_parameter", "model")
    assert words in found.message


def test_a_missing_model_of_text_is_told():
    assert "--model" in bad(b"Hi", PLAIN, input_format=InputFormat.TEXT).message


def test_text_that_is_not_utf8_is_told():
    found = bad(b"Gr\xfc\xdfe", input_format=InputFormat.TEXT)
    assert (found.code, found.message.split(" (")[0]) == (
        "invalid_encoding",
        "not UTF-8: byte 0xfc at offset 2 of the line",
    )


def test_a_text_alone_is_no_rerank_job():
    found = bad(b"text", Defaults("m", "/v1/rerank"), input_format=InputFormat.TEXT)
    assert (found.code, "rerank" in found.message) == ("invalid_request", True)


def test_a_line_that_was_too_long_to_hold_is_told():
    found = parse_line(Line(7, b"{" * 1_000, too_long=True), InputFormat.JSON, MODEL, max_body_bytes=ROOMY)
    assert found == LineError(7, "line_too_large", "the line is too large: it has more than 1,000 bytes")


@pytest.mark.parametrize(
    ("line", "check", "code"),
    [
        (b'{"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}', "/v1/embeddings", None),
        (b'{"url": "/embeddings", "body": {"model": "m", "input": "a"}}', "/v1/embeddings/", None),
        (b'{"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}', "/v1/chat/completions", "url_mismatch"),
        (b'{"model": "m", "input": "a", "voice": "b"}', "/v1/audio/generations", "url_mismatch"),
        (b'{"prompt": "Hi"}', "/v1/chat/completions", None),
        (b'{"prompt": "Hi"}', "/v1/completions", "url_mismatch"),
    ],
)
def test_all_lines_of_a_batch_have_its_endpoint(line, check, code):
    found = parsed(line, endpoint_check=check)
    assert getattr(found, "code", None) == code


def test_nesting_up_to_the_limit_is_taken_and_brackets_in_strings_do_not_nest():
    good(b'{"prompt": "a", "x": ' + DEEP + b"}")
    good(json.dumps({"prompt": '\\"[{' * 10_000, "x": [[]] * 1_000}).encode())


def test_a_nearly_full_stack_is_not_an_exception():
    line = b'{"custom_id": "a", "prompt": "b", "x": ' + DEEP + b"}"

    def down(levels: int) -> ParsedLine | LineError:
        return down(levels - 1) if levels else parsed(line)

    for levels in range(0, sys.getrecursionlimit() - 150, 25):
        assert isinstance(down(levels), ParsedLine | LineError)


def test_a_hostile_line_takes_no_long_time():
    assert isinstance(bad(b"[" * 300 + b'"' + rb"\"" * 2_000_000), LineError)


@pytest.mark.parametrize(
    ("data", "form"),
    [(b"{", Form.BARE), (b'{"prompt": "Hi"}', Form.PROMPT), (b"\xff", Form.TEXT), (b"{}", Form.ENVELOPE)],
)
def test_rendering_what_was_not_accepted_is_a_usage_error(data, form):
    with pytest.raises(UsageError, match="the line makes no request"):
        render(data, form, PLAIN)


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [], "stream": true}}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true}',
        b'{"prompt": "Hi", "custom_id": "a"}',
    ],
)
def test_a_form_that_was_not_settled_is_found_when_it_is_needed(line):
    defaults = Defaults(model="m")
    form = form_of(read(line).fields, defaults)
    assert render(line, None, defaults) == render(line, form, defaults)


def test_a_line_of_no_known_form_is_a_usage_error_too():
    with pytest.raises(UsageError, match="the line makes no request"):
        render(b"Hi", None, PLAIN)


# Laws

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=[])) | st.text()  # with lone surrogates
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
SPACES = st.text(" \t\r\n", max_size=2)


@st.composite
def objects(draw, required: dict[str, Any], *, optional: tuple[str, ...] = ()) -> bytes:
    """A JSON object with these members and others, in any order, spaced and escaped in any way."""
    values = draw(st.dictionaries(TEXTS.map(lambda name: "x" + name), VALUES, max_size=3)) | required
    for name in optional:
        if draw(st.booleans()):
            values[name] = draw(VALUES)
    written = []
    for name, value in draw(st.permutations(sorted(values.items(), key=repr))):
        if isinstance(value, bytes):
            text = value.decode()
        else:
            text = json.dumps(value, ensure_ascii=draw(st.booleans()))
            try:
                text.encode()
            except UnicodeEncodeError:
                text = json.dumps(value)
        written.append(f"{draw(SPACES)}{json.dumps(name)}{draw(SPACES)}:{draw(SPACES)}{text}{draw(SPACES)}")
    return ("{" + ",".join(written) + "}").encode()


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda name: name.isprintable() and "\ufffd" not in name
)
CUSTOM_IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXTS, "content": st.none() | TEXTS}), min_size=1, max_size=3)


@given(st.data())
def test_an_envelopes_body_is_sent_byte_for_byte(data):
    model, custom_id = data.draw(NAMES), data.draw(CUSTOM_IDS)
    body = data.draw(objects({"model": model, "messages": data.draw(MESSAGES)}))
    url = data.draw(st.sampled_from([{}, {"url": "/v1/chat/completions"}]))
    line = data.draw(objects({"custom_id": custom_id, "body": body, **url})) + b"\n"
    found, request = good(line)
    assert (found.custom_id, found.model, found.form) == (custom_id, model, Form.ENVELOPE)
    assert request.body == body


@given(st.data())
def test_a_bare_body_is_sent_byte_for_byte(data):
    body = data.draw(objects({"model": data.draw(NAMES), "messages": data.draw(MESSAGES)}))
    found, request = good(b"\n " + body + b" \r\n\n")
    assert found.form is Form.BARE
    assert request.body == body


@given(st.data())
def test_only_the_custom_id_is_taken_out_and_only_the_model_put_in(data):
    required = {"custom_id": data.draw(CUSTOM_IDS), "messages": data.draw(MESSAGES)}
    line = data.draw(objects(required))
    _, request = good(line)
    kept = [pair for pair in json.loads(line, object_pairs_hook=list) if pair[0] != "custom_id"]
    assert json.loads(request.body, object_pairs_hook=list) == [("model", "default/model"), *kept]


@given(st.data())
def test_a_prompt_is_sent_as_it_was_written(data):
    line = data.draw(objects({"prompt": data.draw(TEXTS)}))
    found, request = good(line, Defaults("m", None, {"top_p": 0.5}))
    assert found.form is Form.PROMPT
    rest = json.loads(line)
    prompt = rest.pop("prompt")
    messages = [{"role": "user", "content": prompt}]
    assert json.loads(request.body) == {"model": "m", "messages": messages, **rest, "top_p": 0.5}


@given(objects({}, optional=("a", "b")))
def test_members_stand_where_they_are_said_to_stand(written):
    text = written.decode()
    assert {m.name: json.loads(text[m.value : m.end]) for m in members(text)} == json.loads(text)
    for member in members(text):
        assert json.loads("{" + text[member.start : member.end] + "}") == {member.name: json.loads(text)[member.name]}
        assert json.loads(last_value(text, member.name)) == json.loads(text)[member.name]
    assert json.loads(without(written, {"a", "b"})) == {
        name: value for name, value in json.loads(text).items() if name not in {"a", "b"}
    }
    with pytest.raises(LookupError):
        last_value(text, "no such name")


@pytest.mark.parametrize(
    ("body", "names", "rest"),
    [
        (b"{}", {"a"}, b"{}"),
        (b'{"a":1}', {"a"}, b"{}"),
        (b' { "a" : 1 } ', {"a"}, b" {  } "),
        (b'{"a":1, "b":2}', {"a"}, b'{"b":2}'),
        (b'{"b":2 , "a":1 }', {"a"}, b'{"b":2 }'),
        (b'{"b":2, "a":1, "c":[{"a": "a"}]}', {"a"}, b'{"b":2, "c":[{"a": "a"}]}'),
        (b'{"a":1, "b":2, "a":3}', {"a"}, b'{"b":2}'),
        (b'{"a":1, "b":2, "c":3}', {"a", "c"}, b'{"b":2}'),
        (b'{"a":true,"b":null,"c":-1.5E+3}', {"b"}, b'{"a":true,"c":-1.5E+3}'),
        (rb'{"\u0061":"}\",{", "b":2}', {"a"}, b'{"b":2}'),
        (b'{"custom_id": "x" , "b":2}', {"custom_id"}, b'{"b":2}'),
        (b'{"custom_id": "x", "b":2, "custom_id": "y"}', {"custom_id"}, b'{"b":2}'),
        (b'{"custom_id": "x", "b":{"custom_id": "y"}}', {"custom_id"}, b'{"b":{"custom_id": "y"}}'),
        (rb'{"custom_id": "x", "b":2, "custom\u005Fid": "y"}', {"custom_id"}, b'{"b":2}'),
    ],
)
def test_members_are_taken_out(body, names, rest):
    assert without(body, names) == rest


@given(st.binary() | PIECES, st.sampled_from(InputFormat), st.sampled_from([PLAIN, MODEL, Defaults("m", "/v1/rerank")]))
def test_no_bytes_make_parsing_raise(line, input_format, defaults):
    found = parsed(line, defaults, input_format=input_format)
    if isinstance(found, ParsedLine):
        render(line, found.form, defaults)


FIELDS = ("custom_id", "method", "url", "body", "model", "messages", "prompt", "query", "documents", "input", "voice")


@given(st.data(), st.sampled_from([None, *PATHS]))
def test_no_object_makes_parsing_raise_and_what_is_accepted_is_rendered(data, endpoint):
    line = data.draw(objects({}, optional=(*FIELDS, "file", "stream", "n")))
    defaults = Defaults("m", endpoint, {"temperature": 1})
    found = parsed(line, defaults)
    if isinstance(found, ParsedLine):
        good(line, defaults)


@given(st.data())
def test_damage_to_a_good_line_is_never_an_exception(data):
    line = bytearray(data.draw(st.sampled_from([line for line, *_ in FORMS if len(line) < 1_000])))
    for place in data.draw(st.lists(st.integers(0, len(line) - 1), min_size=1, max_size=3)):
        line[place] = data.draw(st.integers(0, 255))
    found = parsed(bytes(line))
    if isinstance(found, ParsedLine):
        good(bytes(line))


# Duplicates


def test_duplicates_are_found():
    finder = DuplicateFinder()
    for line, custom_id in enumerate(["a", "b", "a", "c", "b", "a", ""], 1):
        finder.add(custom_id, line)
    assert sorted(finder.candidates()) == [(1, 3), (1, 6), (2, 5)]
    assert sorted(finder.candidates()) == [(1, 3), (1, 6), (2, 5)]


def test_no_duplicates_is_no_candidates():
    finder = DuplicateFinder()
    assert list(finder.candidates()) == []
    for line in range(10_000):
        finder.add(f"request-{line}", line)
    assert list(finder.candidates()) == []


@given(st.lists(st.text(max_size=2), max_size=200))
def test_every_duplicate_is_a_candidate(custom_ids):
    finder = DuplicateFinder()
    for line, custom_id in enumerate(custom_ids, 1):
        finder.add(custom_id, line)
    expected = {
        (custom_ids.index(custom_id) + 1, line)
        for line, custom_id in enumerate(custom_ids, 1)
        if custom_ids.index(custom_id) + 1 != line
    }
    assert set(finder.candidates()) == expected


# The page for users


def test_the_examples_of_the_page_are_what_the_page_says():
    text = DOCS.read_text()
    examples = re.findall(r"<!-- (\w+) -->\n```\w*\n(.*?)```", text, re.DOTALL)
    assert {form for form, _ in examples} == {form.value for form in Form}
    for form, block in examples:
        input_format = InputFormat.TEXT if form == "text" else InputFormat.JSON
        for line in block.splitlines():
            found, _ = good(line.encode(), input_format=input_format)
            assert found.form == form, line


def test_the_page_has_every_code_and_every_path():
    text = DOCS.read_text()
    codes = {code for _, code, _, _ in WRONG} | {"url_mismatch", "duplicate_custom_id"}
    assert [code for code in sorted(codes) if f"`{code}`" not in text] == []
    assert [path for path in PATHS if f"`{path}`" not in text] == []


@given(st.binary(max_size=60), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20))
def test_a_cutter_gives_what_a_reader_gives(content: bytes, cuts: list[int], most: int):
    chunks, at = [], 0
    for cut in itertools.cycle(cuts):
        if at >= len(content):
            break
        chunks.append(content[at : at + cut])
        at += cut
    cutter = LineCutter(most)
    pushed = [line for chunk in chunks for line in cutter.feed(chunk)]
    assert cutter.open_bytes == len(content.rpartition(b"\n")[2])
    assert cutter.ended_lines == content.count(b"\n")
    assert [*pushed, *cutter.end()] == list(read_lines([content], most))
    assert list(cutter.end()) == []
