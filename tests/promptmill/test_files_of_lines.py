"""Inputs as they are stored: compressed, piped, cut off, unreadable."""

import gzip
import io
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from promptmill.errors import UsageError
from promptmill.jsonl import InputFormat, detect_format, open_input

CONTENT = b'{"prompt": "one"}\n{"prompt": "two"}\n' * 3_000


def taken(name: str | Path) -> bytes:
    with open_input(str(name)) as chunks:
        return b"".join(chunks)


def gzipped(data: bytes) -> bytes:
    """The same whenever it is made: it is part of the names of tests."""
    return gzip.compress(data, mtime=0)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("stored", "content"),
    [
        (CONTENT, CONTENT),
        (b"", b""),
        (b"{", b"{"),
        (gzipped(CONTENT), CONTENT),
        (gzipped(CONTENT) + gzipped(b"more\n"), CONTENT + b"more\n"),
        (gzipped(b"") + gzipped(b"more\n"), b"more\n"),
        (gzipped(CONTENT) + b"\0" * 100, CONTENT),
        (gzipped(b""), b""),
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


@pytest.mark.parametrize("compress", [gzipped, zstd])
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
        (gzipped(CONTENT)[:40] + b"rubbish" * 500, r"gzip data are damaged near byte"),
        (gzipped(CONTENT)[:-8] + b"\0" * 8, r"gzip data are damaged .* after 108,000 bytes of content|damaged"),
        (gzipped(CONTENT) + b"rubbish", r"gzip data are damaged near byte"),
        (zstd(CONTENT)[:60] + b"\xff" * 500, r"zstandard data are damaged near byte"),
        (zstd(CONTENT) + b"rubbish", r"zstandard data are damaged near byte"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff\x00{\x00}", "UTF-16"),
        ("{}".encode("utf-32"), "UTF-16 or UTF-32"),
        (gzipped("{}".encode("utf-16")), "UTF-16"),
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


@pytest.mark.parametrize("stored", [CONTENT, gzipped(CONTENT), zstd(CONTENT)])
def test_standard_input_is_read_and_left_open(monkeypatch, stored):
    stdin = io.BytesIO(stored)
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stdin}))
    assert taken("-") == CONTENT
    assert not stdin.closed


def test_a_pipe_that_gives_a_byte_at_a_time_is_recognised_too(monkeypatch):
    class Dripping(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            return super().read(1)

    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Dripping(gzipped(b"content\n"))}))
    assert taken("-") == b"content\n"


@given(st.lists(st.binary(max_size=500), max_size=4), st.booleans())
def test_members_and_frames_are_joined(tmp_path_factory, contents, use_zstd):
    path = tmp_path_factory.mktemp("joined") / "input"
    compress = zstd if use_zstd else gzipped
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
        ("-", b"{{ date }}: what happened?", InputFormat.TEXT),
        ("-", b'{{"prompt": "x"}', InputFormat.JSON),
        ("prompts", b"Why?", InputFormat.TEXT),
        ("a.csv", b"a,b", InputFormat.TEXT),
        (".jsonl", b"text", InputFormat.TEXT),
    ],
)
def test_the_format_is_told_by_the_name_and_else_by_the_first_line(name, first, found):
    assert detect_format(name, first) is found
