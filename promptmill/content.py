"""How bytes are kept: as they are, or compressed when that is worth it. `encoding` says which, row by row."""

from typing import Final

import zstandard

PLAIN: Final = 0
ZSTD: Final = 1

#: Below this the header costs more than the compression brings.
COMPRESS_FROM_BYTES: Final = 4096

_LEVEL: Final = 3  # zstd's own default: near its best ratio for JSON at hundreds of MB/s


def pack(data: bytes) -> tuple[int, bytes]:
    """(encoding, stored bytes) for `data`."""
    if len(data) < COMPRESS_FROM_BYTES:
        return PLAIN, data
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return (ZSTD, packed) if len(packed) < len(data) * 0.9 else (PLAIN, data)


def unpack(encoding: int, stored: bytes) -> bytes:
    """What was given to `pack`.

    Raises ValueError for an encoding that this version does not know.
    """
    if encoding == PLAIN:
        return stored
    if encoding == ZSTD:
        return zstandard.ZstdDecompressor().decompress(stored)
    raise ValueError(f"unknown content encoding {encoding}: the row was written by a newer promptmill")
