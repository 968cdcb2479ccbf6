"""A real picture in few bytes: two colours, drawn from a grain, in a PNG of exactly the asked size."""

import re
import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _ONE_BIT = 3, 1
_NAME = re.compile(r"([0-9a-f]{32})-(\d{1,4})x(\d{1,4})\.png")

MOST_PIXELS_A_SIDE = 2048


def draw_png(grain: bytes, width: int, height: int) -> bytes:
    """Stripes of one bit a pixel, so that a megapixel costs a fraction of a millisecond."""
    stripes = grain[6:14]
    row = b"\0" + (stripes * (width // 64 + 1))[: (width + 7) // 8]
    header = struct.pack(">IIBBBBB", width, height, _ONE_BIT, _PALETTE, 0, 0, 0)
    pixels = zlib.compress(row * height, level=1)
    chunks = ((b"IHDR", header), (b"PLTE", grain[:6]), (b"IDAT", pixels), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def name_of(grain: bytes, width: int, height: int) -> str:
    """A file name that holds all it takes to draw the picture again: served later, kept nowhere."""
    return f"{grain.hex()}-{width}x{height}.png"


def from_name(name: str) -> bytes | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    width, height = int(match[2]), int(match[3])
    if not (1 <= width <= MOST_PIXELS_A_SIDE and 1 <= height <= MOST_PIXELS_A_SIDE):
        return None
    return draw_png(bytes.fromhex(match[1]), width, height)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
