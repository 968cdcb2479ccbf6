"""Sound that players accept: a tone in a WAV, and silence in MPEG frames."""

import math
import struct
from array import array

_LOUDNESS = 8000
_SAMPLE_BYTES = 2

# MPEG-1 layer III, 32 kbit/s, 44.1 kHz, one channel: with all side information zero a frame decodes to silence.
_MP3_FRAME = bytes.fromhex("fffb10c4") + bytes(100)
_MP3_FRAME_SECONDS = 1152 / 44_100


def tone(hertz: float, seconds: float, samples_per_second: int) -> bytes:
    """16-bit samples, one channel. One wave is computed and then repeated."""
    wave_samples = max(2, round(samples_per_second / hertz))
    wave = array("h", (round(_LOUDNESS * math.sin(math.tau * at / wave_samples)) for at in range(wave_samples)))
    count = max(1, round(seconds * samples_per_second))
    return (wave.tobytes() * (count // wave_samples + 1))[: count * _SAMPLE_BYTES]


def wav(samples: bytes, samples_per_second: int) -> bytes:
    bytes_per_second = samples_per_second * _SAMPLE_BYTES
    layout = struct.pack("<HHIIHH", 1, 1, samples_per_second, bytes_per_second, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    chunks = b"WAVE" + _riff_chunk(b"fmt ", layout) + _riff_chunk(b"data", samples)
    return _riff_chunk(b"RIFF", chunks)


def mp3(seconds: float, title: str) -> bytes:
    """Silence of that length; the title goes into an ID3 tag, since silences are all alike."""
    text = b"\0" + title.encode("latin-1", "replace")
    frame = b"TIT2" + struct.pack(">IH", len(text), 0) + text
    # The tag's length is written seven bits to the byte.
    length = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + length + frame + _MP3_FRAME * max(2, math.ceil(seconds / _MP3_FRAME_SECONDS))


def seconds_of_wav(content: bytes) -> float | None:
    """How long a WAV plays, or None when it is none."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    at, bytes_per_second = 12, 0
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if kind == b"fmt ":
            bytes_per_second = int.from_bytes(content[at + 16 : at + 20], "little")
        elif kind == b"data" and bytes_per_second:
            # Streamed files announce a length of 0 or 0xFFFFFFFF: what is there counts.
            return min(size or len(content), len(content) - at - 8) / bytes_per_second
        at += 8 + size + size % 2
    return None


def _riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
