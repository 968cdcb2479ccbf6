"""Inputs are larger than memory, so they are read as a stream of lines, and nothing is lost on the way.

Bytes in, lines out: opening (plain, gzip, zstandard, standard input), cutting into lines, telling text from JSON, and
finding custom_ids given twice. What a line means is `request.py`'s.
"""

import io
import re
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from itertools import chain
from pathlib import Path, PurePath
from typing import BinaryIO, Final, Protocol

import msgspec
import zstandard

from promptmill.errors import UsageError

#: Bytes of one read.
CHUNK_BYTES: Final = 256 * 1024
#: What may stand around a line's content, and what alone makes a line blank: JSON's own white space.
BLANK: Final = b" \t\r\n"
BOM: Final = b"\xef\xbb\xbf"
_TEMPLATE: Final = re.compile(rb"\{\{[ \t]*[A-Za-z_][A-Za-z0-9_]*[ \t]*\}\}")

#: Enough of a beginning to recognise what it is.
_MAGIC_BYTES = 16
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: A frame that carries no data; pzstd begins its files with one. Before it stands any of 0x50 to 0x5f.
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_FOREIGN = {
    b"PK\x03\x04": "is a zip archive",
    b"\xfd7zXZ\x00": "is compressed with xz",
    b"BZh91AY&SY": "is compressed with bzip2",
    b"PAR1": "is a Parquet file",
}
#: Compressed bytes handed to the decoder at once. They may swell 1,032-fold (deflate) or 32,768-fold (zstandard), and
#: that is held in memory, once or twice: 16 and 64 MiB at worst.
_GZIP_PIECE = 16 * 1024
_ZSTD_PIECE = 2 * 1024

_SHARDS = 64


class InputFormat(StrEnum):
    """What the lines of an input are."""

    JSON = "json"
    TEXT = "text"


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line that is not blank. (A msgspec struct: there are millions.)

    `number` counts physical lines from 1. `data` has the line's terminator and the blank lines that follow it; the
    first line's also has what stood before it (blank lines, a byte order mark): so the data of all lines together are
    the input, byte for byte. A line that is `too_long` is the exception: its `data` is cut.
    """

    number: int
    data: bytes
    too_long: bool = False


class LineCutter:
    """Cuts into lines what is fed to it, however that is cut into chunks.

    It holds no more than one line and the blank lines after it. A line that has more than `max_line_bytes`, its
    terminator and the blank lines around it counted in, comes out `too_long`; so does a blank line longer than that.
    An input with nothing but blank lines otherwise has no lines.
    """

    def __init__(self, max_line_bytes: int) -> None:
        #: Physical lines that have ended, and how long the one is, so far, that has not.
        self.ended_lines = 0
        self.open_bytes = 0
        self._most = max_line_bytes
        self._open: list[bytes] = []  # no more than its first `_most` + 1 bytes
        self._begun = 0  # the number of the line that is held; 0 before the first
        self._held = b""
        self._blanks: list[bytes] = []
        self._blank_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that are now known to be whole. Take them all before the next chunk."""
        buffer = io.BytesIO(chunk)
        while lines := buffer.readlines(CHUNK_BYTES):  # a decompressed chunk may be large, and all newlines
            joined = b""
            if self._open:
                first = lines.pop(0)
                self._open.append(first[: max(0, self._most + 1 - self.open_bytes)])
                self.open_bytes += len(first)
                if not first.endswith(b"\n"):
                    continue
                joined = b"".join(self._open)
                self._open, self.open_bytes = [], 0
            if lines and not lines[-1].endswith(b"\n"):
                self._open = [lines.pop()]
                self.open_bytes = len(self._open[0])
            if joined:
                lines.insert(0, joined)
            yield from self._lines(lines)

    def end(self) -> Iterator[Line]:
        """What is left when nothing more comes."""
        if self._open:
            last = b"".join(self._open)
            self._open, self.open_bytes = [], 0
            yield from self._lines([last])
        if self._begun:
            yield _line(self._begun, b"".join((self._held, *self._blanks)), self._most)
            self._begun, self._held, self._blanks = 0, b"", []

    def _lines(self, physical: list[bytes]) -> Iterator[Line]:
        """Of lines with their terminators, those that are not blank, each with the blank ones that follow it."""
        most, begun, held, blanks = self._most, self._begun, self._held, self._blanks
        number = self.ended_lines
        for data in physical:
            number += 1
            # The first comparison answers for almost every line. What is too long may be cut before its content begins.
            if (
                (data[0] > 0x20 and number > 1)  # noqa: PLR2004 - a space
                or data.removeprefix(BOM).strip(BLANK)
                or len(data) > most
            ):
                if begun:
                    yield _line(begun, b"".join((held, *blanks)) if blanks else held, most)
                    held = data
                else:
                    held = b"".join((*blanks, data))
                begun = number
                if blanks:
                    blanks, self._blank_bytes = [], 0
            elif self._blank_bytes <= most:
                blanks.append(data)
                self._blank_bytes += len(data)
        self.ended_lines, self._begun, self._held, self._blanks = number, begun, held, blanks


def read_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[Line]:
    """The lines of a stream, as LineCutter cuts them; no more than one chunk and one line are held."""
    cutter = LineCutter(max_line_bytes)
    return chain.from_iterable(chain(map(cutter.feed, chunks), (cutter.end(),)))


def _line(number: int, data: bytes, most: int) -> Line:
    return Line(number, data) if len(data) <= most else Line(number, data[:most], too_long=True)


@contextmanager
def open_input(name: str) -> Iterator[Iterator[bytes]]:
    """The content of the file `name`, or of standard input for "-", in chunks; decompressed where it is compressed.

    gzip (also of many members) and zstandard (also of many frames) are recognised by their first bytes, whatever the
    name. Raises UsageError, on opening or while chunks are taken, with what is wrong: no such file, a directory, no
    permission, UTF-16, a foreign format, damaged or cut off compressed data (with the byte).
    """
    called = "standard input" if name == "-" else name
    with _opened(name, called) as file:
        raw, start = _peeked(_chunks(file, called))
        if start.startswith(_GZIP):
            raw, start = _peeked(_decompressed(raw, called, "gzip", _GZIP_PIECE, lambda: zlib.decompressobj(wbits=31)))
        elif start.startswith(_ZSTD) or start[1:4] == _ZSTD_SKIPPABLE:
            frames = zstandard.ZstdDecompressor()
            raw, start = _peeked(_decompressed(raw, called, "zstandard", _ZSTD_PIECE, frames.decompressobj))
        for magic, words in _FOREIGN.items():
            if start.startswith(magic):
                raise UsageError(f"{called} {words}: unpack or convert it to JSON lines first")
        if start.startswith(_UTF_16_OR_32):
            raise UsageError(f"{called} is UTF-16 or UTF-32 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        yield raw


def _opened(name: str, called: str) -> AbstractContextManager[BinaryIO]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    path = Path(name)
    try:
        if path.is_dir():
            raise UsageError(f"{called} is a directory: name a file in it")
        return path.open("rb")
    except FileNotFoundError:
        raise UsageError(f"{called}: there is no such file") from None
    except PermissionError:
        raise UsageError(f"{called} may not be read: permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{called} cannot be opened: {error}") from error


def _chunks(file: BinaryIO, called: str) -> Iterator[bytes]:
    # read1: a pipe hands over what it has, instead of waiting until a whole chunk is there.
    read = file.read1 if isinstance(file, io.BufferedReader) else file.read
    try:
        while chunk := read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise UsageError(f"{called} cannot be read: {error}") from error


def _peeked(chunks: Iterator[bytes]) -> tuple[Iterator[bytes], bytes]:
    """The same chunks, and the first bytes of them."""
    taken: list[bytes] = []
    start = b""
    for chunk in chunks:
        taken.append(chunk)
        start += chunk[:_MAGIC_BYTES]
        if len(start) >= _MAGIC_BYTES:
            break
    return chain(taken, chunks), start


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _decompressed(
    chunks: Iterator[bytes], called: str, format_name: str, piece_bytes: int, new_decoder: Callable[[], _Decoder]
) -> Iterator[bytes]:
    """The content of all members (frames), one after the other."""
    decoder = new_decoder()
    taken = given = 0  # bytes of the file, bytes of its content
    for chunk in chunks:
        for at in range(0, len(chunk), piece_bytes):
            piece = chunk[at : at + piece_bytes]
            taken += len(piece)
            while piece:
                if decoder.eof:
                    piece = piece.lstrip(b"\0")  # members may be padded to whole blocks
                    if not piece:
                        break
                    decoder = new_decoder()
                try:
                    content = decoder.decompress(piece)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise UsageError(
                        f"{called}: its {format_name} data are damaged near byte {taken - len(piece):,} of the file, "
                        f"after {given:,} bytes of content ({error})"
                    ) from error
                piece = decoder.unused_data if decoder.eof else b""
                if content:
                    given += len(content)
                    yield content
    if not decoder.eof:
        raise UsageError(
            f"{called} is cut off: its {format_name} data end in the middle, at byte {taken:,} of the file, "
            f"after {given:,} bytes of content"
        )


def detect_format(name: str, first_line: bytes) -> InputFormat:
    """What the lines of the input called `name` are; `first_line` (the first that is not blank) decides where the
    name does not.

    >>> detect_format("prompts.txt.gz", b'{"prompt": "Hi"}'), detect_format("-", b'{"prompt": "Hi"}')
    (<InputFormat.TEXT: 'text'>, <InputFormat.JSON: 'json'>)
    """
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    while suffixes and suffixes[-1] in {".gz", ".zst"}:
        suffixes.pop()
    match suffixes[-1:]:
        case [".txt"]:
            return InputFormat.TEXT
        case [".jsonl" | ".ndjson" | ".json"]:
            return InputFormat.JSON
        case _:
            begins = first_line.lstrip(BLANK).removeprefix(BOM).lstrip(BLANK)
            # No object begins with two braces; a text of a schedule may: "{{ date }}: what happened?"
            is_object = begins.startswith(b"{") and not _TEMPLATE.match(begins)
            return InputFormat.JSON if is_object else InputFormat.TEXT


class DuplicateFinder:
    """Finds custom_ids given twice among millions, in 16 bytes each.

    What is kept of an id is a hash of 64 bits and its line, so what it finds are candidates: the caller compares the
    two lines' ids. Two different ids have one hash with a probability of 3 in 100 million for a million ids.
    """

    def __init__(self) -> None:
        # Shards, so that the search at the end needs a table of a 64th of the ids only.
        self._hashes = [array("q") for _ in range(_SHARDS)]
        self._lines = [array("Q") for _ in range(_SHARDS)]

    def add(self, custom_id: str, line: int) -> None:
        """Remembers that the line numbered `line` has this id; lines come in rising order."""
        # The interpreter's own hash: SipHash with a random key, so nobody can prepare ids that collide.
        digest = hash(custom_id)
        shard = digest % _SHARDS
        self._hashes[shard].append(digest)
        self._lines[shard].append(line)

    def candidates(self) -> Iterator[tuple[int, int]]:
        """(first line, later line) of each id that seems to come again; once for every later line, in no order."""
        for hashes, lines in zip(self._hashes, self._lines, strict=True):
            if len(set(hashes)) == len(hashes):
                continue
            first: dict[int, int] = {}
            for digest, line in zip(hashes, lines, strict=True):
                earlier = first.setdefault(digest, line)
                if earlier != line:
                    yield earlier, line
