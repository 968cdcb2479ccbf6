"""Server-sent events as the SDKs read them: `data:` lines with JSON, and a last one that says [DONE]."""

import itertools

import msgspec

EVENT_STREAM = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"

#: A long answer streams in this many pieces at most: enough to be a stream, cheap enough to hold thousands.
_MOST_PIECES = 64

_encode = msgspec.json.Encoder().encode


def event(content: object) -> bytes:
    return b"data: " + _encode(content) + b"\n\n"


def pieces(text: str) -> list[str]:
    """The text in word-sized pieces; joined, they are the text."""
    if not text:
        return []
    ends = [at + 1 for at, char in enumerate(text) if char == " "]
    stride = -(-(len(ends) + 1) // _MOST_PIECES)
    cuts = [0, *ends[stride - 1 :: stride], len(text)]
    return [text[start:end] for start, end in itertools.pairwise(cuts) if end > start]
