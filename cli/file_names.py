"""A custom_id becomes a file name that every system accepts, and bytes tell which extension they deserve."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: Of the UTF-8 name without what is added to it; file systems end at 255.
_NAME_BYTES: Final = 150

#: Separators, what Windows or a shell reads as something else, and everything invisible (control, bidi).
_UNSAFE = re.compile(r"[\\/:*?\"<>|;&$`'!~\[\]{}()#%^]")
_WINDOWS_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)


def safe_name(custom_id: str) -> str:
    """A file name, without extension, that is in no folder but the one it is put in.

    Where something had to be changed, a few digits of the custom_id's hash are added: so that `a/b` and `a:b` stay
    apart, and each gets the same name every time.

    >>> safe_name("photo 12"), safe_name("Zürich.v2")
    ('photo 12', 'Zürich.v2')
    >>> safe_name("../../etc/passwd")
    '_.._etc_passwd-830a08e2'
    """
    normal = unicodedata.normalize("NFC", custom_id)
    name = "".join(c if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" else "_" for c in normal)
    name = _UNSAFE.sub("_", name).lstrip(". ")
    name = name.encode()[:_NAME_BYTES].decode(errors="ignore").rstrip(". ")
    if not name or name.startswith("-") or _WINDOWS_DEVICES.fullmatch(name):
        name = f"_{name}"
    return name if name == normal else with_digest(name, custom_id)


def with_digest(name: str, custom_id: str) -> str:
    """The name, made unlike that of every other custom_id."""
    return f"{name}-{hashlib.blake2b(custom_id.encode(), digest_size=4).hexdigest()}"


_BY_TYPE: Mapping[str, str] = MappingProxyType(
    {
        "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/wave": ".wav", "audio/vnd.wave": ".wav",
        "audio/mpeg": ".mp3", "audio/mp3": ".mp3", "audio/flac": ".flac", "audio/x-flac": ".flac",
        "audio/ogg": ".ogg", "audio/opus": ".opus", "audio/aac": ".aac", "audio/mp4": ".m4a", "audio/x-m4a": ".m4a",
        "audio/webm": ".webm", "audio/aiff": ".aiff", "audio/basic": ".au",
        "audio/pcm": ".pcm", "audio/x-pcm": ".pcm", "audio/raw": ".pcm", "audio/l16": ".pcm", "audio/l24": ".pcm",
        "image/png": ".png", "image/jpeg": ".jpg", "image/jpg": ".jpg", "image/webp": ".webp", "image/gif": ".gif",
        "image/avif": ".avif", "image/heic": ".heic", "image/bmp": ".bmp", "image/tiff": ".tiff",
        "image/svg+xml": ".svg", "video/mp4": ".mp4", "video/webm": ".webm",
    }
)  # fmt: skip

_BY_BEGINNING: Final = (
    (re.compile(rb"RIFF....WAVE", re.DOTALL), ".wav"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"GIF8[79]a"), ".gif"),
    (re.compile(rb"fLaC"), ".flac"),
    (re.compile(rb"OggS.{24,}OpusHead", re.DOTALL), ".opus"),
    (re.compile(rb"OggS"), ".ogg"),
    (re.compile(rb"ID3[\x02-\x04]"), ".mp3"),
    # A frame of layer III with a bit rate and a sampling rate that exist: noise in raw samples rarely looks like that.
    (re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xeb]"), ".mp3"),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9][\x00-\x7f]"), ".aac"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), ".avif"),
    (re.compile(rb"....ftyp(?:hei[cx]|mif1)", re.DOTALL), ".heic"),
    (re.compile(rb"....ftypM4A", re.DOTALL), ".m4a"),
    (re.compile(rb"....ftyp", re.DOTALL), ".mp4"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), ".webm"),
)
_LOOK_AT_BYTES: Final = 64


def extension(content: bytes, content_type: str) -> str:
    """What the content is by its first bytes; else what it is said to be; else `.bin`.

    Raw samples have no mark of their own: said to be raw, they are.

    >>> extension(b"ID3\\x04", "application/octet-stream"), extension(b"\\0\\1", "audio/pcm;rate=24000")
    ('.mp3', '.pcm')
    """
    said = _BY_TYPE.get(content_type.partition(";")[0].strip().lower(), ".bin")
    if said == ".pcm":
        return said
    beginning = content[:_LOOK_AT_BYTES]
    return next((ending for pattern, ending in _BY_BEGINNING if pattern.match(beginning)), said)
