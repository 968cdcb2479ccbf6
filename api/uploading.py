"""Forms with a file in them, parsed as they come: the file is never in memory, nor on this machine's disk.

The file may stand before the fields that say what it is for (OpenAI's TypeScript client sends it so).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from api.bodies import chunks, media_type, too_large, unsupported
from api.errors import invalid

#: One field that is no file, and how many there may be.
MAX_FIELD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 64
MAX_NAME: Final = 512
_MAX_BOUNDARY: Final = 200
#: What a form may have around its file.
_FRAME_BYTES: Final = MAX_FIELD_BYTES * MAX_FIELDS


class Sink(Protocol):
    """Where a file goes."""

    async def feed(self, chunk: bytes) -> None:
        """More of it."""


#: Told the file's name, the fields that came before it, and its declared type; returns where it goes.
Opened = Callable[[str, Mapping[str, str]], Awaitable[Sink]]


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form, and whether there was a file. `pairs` are all of them, where one may come again."""

    fields: Mapping[str, str]
    has_file: bool
    pairs: Sequence[tuple[str, str]] = ()


class _Event(Enum):
    HEADERS = 1
    DATA = 2
    END_OF_PART = 3
    END = 4


async def receive(
    request: Request,
    limit_bytes: int,
    opened: Opened,
    *,
    file_field: str = "file",
    may_be_text: bool = False,
    max_field_bytes: int = MAX_FIELD_BYTES,
) -> Form:
    """Read a whole form; its file goes where `opened` says. Raises ApiError for what is no form, or too large.

    `may_be_text`: a text in the place of the file is a field like others.
    """
    reader = _Reader(_boundary(request), limit_bytes, opened, file_field)
    reader.may_be_text, reader.max_field_bytes = may_be_text, max_field_bytes
    async for chunk in chunks(request, limit_bytes + _FRAME_BYTES):
        await reader.feed(chunk)
    if not reader.ended:
        raise invalid("The form ends in the middle: its last boundary is missing.", code="invalid_form")
    return Form(reader.fields, reader.has_file, reader.pairs)


def _boundary(request: Request) -> bytes:
    if media_type(request) != "multipart/form-data":
        raise unsupported(request, "multipart/form-data")
    _, parameters = parse_options_header(request.headers["content-type"].encode("latin-1"))
    boundary = parameters.get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise invalid("The Content-Type has no boundary, or one that is too long.", code="invalid_form")
    return boundary


class _Reader:
    """One form. The parser calls back while it looks at a chunk; what it found is then worked off in order."""

    def __init__(self, boundary: bytes, limit_bytes: int, opened: Opened, file_field: str) -> None:
        self.fields: dict[str, str] = {}
        self.pairs: list[tuple[str, str]] = []
        self.may_be_text = False
        self.max_field_bytes = MAX_FIELD_BYTES
        self.has_file = False
        self.ended = False
        self._limit = limit_bytes
        self._opened = opened
        self._file_field = file_field
        self._events: list[tuple[_Event, bytes]] = []
        self._header: list[bytes] = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._value = bytearray()
        self._sink: Sink | None = None
        self._file_bytes = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._on_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._on_header(1, data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: self._events.append((_Event.DATA, data[start:end])),
                "on_part_end": lambda: self._events.append((_Event.END_OF_PART, b"")),
                "on_end": lambda: self._events.append((_Event.END, b"")),
            },
        )

    async def feed(self, chunk: bytes) -> None:
        """More of the form."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise invalid(f"The form cannot be read: {str(error)[:200]}", code="invalid_form") from None
        events, self._events = self._events, []
        for event, data in events:
            if event is _Event.HEADERS:
                await self._begin(data)
            elif event is _Event.DATA:
                await self._data(data)
            elif event is _Event.END_OF_PART:
                self._end_part()
            else:
                self.ended = True

    def _on_header(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[name.strip().lower()] = value
        self._header = [b"", b""]

    def _on_headers_finished(self) -> None:
        self._events.append((_Event.HEADERS, self._headers.get(b"content-disposition", b"")))

    async def _begin(self, disposition: bytes) -> None:
        kind, parameters = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in parameters:
            raise invalid("A part of the form has no name.", code="invalid_form")
        self._name = text(parameters[b"name"], "the name of a field")
        self._value = bytearray()
        self._sink = None
        if b"filename" in parameters:
            await self._begin_file(text(parameters[b"filename"], "the file's name"))
        elif self._name == self._file_field and not self.may_be_text:
            raise invalid(
                f"`{self._file_field}` must be a file, with a filename; it is a text.", param=self._file_field
            )
        elif len(self.pairs) >= MAX_FIELDS:
            raise invalid(f"The form has more than {MAX_FIELDS} fields.", code="invalid_form")

    async def _begin_file(self, filename: str) -> None:
        if self._name != self._file_field:
            raise invalid(f"The file must be in the field `{self._file_field}`, not in {self._name[:60]!r}.")
        if self.has_file:
            raise invalid("The form has more than one file.", param=self._file_field)
        self.has_file = True
        self._sink = await self._opened(file_name(filename), self.fields)

    async def _data(self, data: bytes) -> None:
        if self._sink is None:
            self._value += data
            if len(self._value) > self.max_field_bytes:
                raise invalid(f"The field {self._name[:60]!r} has more than {self.max_field_bytes:,} bytes.")
            return
        self._file_bytes += len(data)
        if self._file_bytes > self._limit:
            raise too_large(self._limit, "file")
        await self._sink.feed(data)

    def _end_part(self) -> None:
        if self._sink is None:
            value = text(self._value, f"the field {self._name[:60]!r}")
            self.fields[self._name] = value
            self.pairs.append((self._name, value))
        self._sink = None


def text(data: bytes | bytearray, what: str) -> str:
    """Bytes of a form as text. Raises ApiError where they are none that can be kept."""
    try:
        value = data.decode()
    except UnicodeDecodeError:
        raise invalid(f"{what[:1].upper()}{what[1:]} is not UTF-8.", code="invalid_form") from None
    if "\0" in value:
        raise invalid(f"{what[:1].upper()}{what[1:]} has a NUL character.", code="invalid_form")
    return value


def file_name(given: str) -> str:
    """The name of a file without its folders. Raises ApiError for one that cannot be kept."""
    name = given.replace("\\", "/").rpartition("/")[2].strip()
    if not name or "\0" in name or len(name) > MAX_NAME:
        raise invalid(f"The file needs a name of 1 to {MAX_NAME} characters, without NUL.", param="filename")
    return name
