"""Content on its way out: the whole of it or a range, compressed where the caller takes that, never in memory as one.

Every stored byte leaves through here: files, results and single answers.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.errors import ApiError

#: Small pieces (lines) leave together: a write to the socket for each would be most of the work.
_PIECE_BYTES: Final = 128 * 1024
#: Below this a compressed answer is no shorter on the wire.
_GZIP_FROM_BYTES: Final = 1024
_GZIP_LEVEL: Final = 1  # as fast as a network; prompts shrink to a third all the same
_WITH_HEADER: Final = 31  # zlib's way to say: gzip, the largest window
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
#: Together's first Python client asserts a Content-Length, which is not known of what is compressed on the way.
_NEEDS_LENGTH: Final = "pythonbindings"


def content_response(
    request: Request,
    *,
    chunks_from: Callable[[int], AsyncIterator[bytes]],
    size: int,
    media_type: str,
    filename: str,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    """The answer with this content, of `size` bytes. `chunks_from(start)` are its bytes from `start` on.

    Raises ApiError (416) for a range that begins after the end.
    """
    told = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition(filename),
        "X-Content-Type-Options": "nosniff",
        **headers,
    }
    asked = _asked_range(request, size)
    if asked is not None:
        start, end = asked
        told |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
        pieces = _pieces(chunks_from(start), end - start)
        return StreamingResponse(pieces, status_code=206, media_type=media_type, headers=told)
    pieces = _pieces(chunks_from(0), size)
    if _shrinks(media_type) and size >= _GZIP_FROM_BYTES:
        told["Vary"] = "Accept-Encoding"
        if _takes_gzip(request):
            told["Content-Encoding"] = "gzip"
            return StreamingResponse(_gzipped(pieces), media_type=media_type, headers=told)
    told["Content-Length"] = str(size)
    return StreamingResponse(pieces, media_type=media_type, headers=told)


def disposition(filename: str) -> str:
    """A header that has browsers save the content under this name, whatever characters it has."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%/]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"


def _asked_range(request: Request, size: int) -> tuple[int, int] | None:
    """(start, end) of the one range that is asked for; None: all of it. Raises ApiError (416)."""
    # If-Range compares with a validator, and we give none: then the whole is right.
    if "if-range" in request.headers:
        return None
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or found.groups() == ("", ""):
        return None  # none, several, or not understood: RFC 9110 has the whole sent
    first, last = found.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise ApiError(
            416, f"The content has {size:,} bytes, so there is nothing in the range {found.group(0).strip()!r}.",
            code="range_not_satisfiable", headers={"Content-Range": f"bytes */{size}"},
        )  # fmt: skip
    return start, end


def _shrinks(media_type: str) -> bool:
    return media_type.startswith("text/") or "json" in media_type


def _takes_gzip(request: Request) -> bool:
    if _NEEDS_LENGTH in request.headers.get("user-agent", "").lower():
        return False
    for item in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() == "gzip":
            return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight) is None
    return False


async def _pieces(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes, in pieces worth sending. Raises ValueError where there are fewer."""
    held: list[bytes] = []
    held_bytes = 0
    left = size
    async for chunk in chunks:
        part = chunk if len(chunk) <= left else chunk[:left]
        left -= len(part)
        held.append(part)
        held_bytes += len(part)
        if held_bytes >= _PIECE_BYTES or not left:
            yield b"".join(held)
            held, held_bytes = [], 0
        if not left:
            return
    if left:
        raise ValueError(f"the content ends {left:,} bytes before its announced {size:,}")


async def _gzipped(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=_WITH_HEADER)
    async for piece in pieces:
        if packed := await asyncio.to_thread(packer.compress, piece):  # a large piece takes milliseconds
            yield packed
    yield packer.flush()
