"""Where answers get their variety from: every draw is a hash of (seed, request, label), so a rerun gives the same
answers.

A grain is the 16 bytes that stand for one request. Two requests that differ in a byte have unrelated grains, which
is what lets a test tell from an answer which request it belongs to.
"""

import hashlib

GRAIN_BYTES = 16

_WORDS = """
amber anchor apple arch autumn basin beacon birch bridge brook canal candle cedar chalk cliff cloud
copper coral cotton crane delta drift eagle ember fable falcon fern field flint forest garden glacier
grain granite harbor hazel hollow island ivory jasper lantern ledger linen maple marsh meadow mill
mirror moss north oak orchard paper pebble pine quarry raven reed river saddle sail silver stone thistle
""".split()  # noqa: SIM905 - sixty-four quoted words would fill a page
_WORD_OF_BYTE = _WORDS * (256 // len(_WORDS))
_WORDS_IN_SENTENCE = 11
_CHARS_PER_TOKEN = 4
_CHARS_PER_WORD = 6  # with the blank after it


def grain_of(seed: int, kind: str, *parts: bytes) -> bytes:
    """The grain of a request: what it is asked, of which kind, under which seed."""
    mix = hashlib.blake2b(digest_size=GRAIN_BYTES, key=b"%d" % seed, person=kind.encode()[:16])
    for part in parts:
        mix.update(part)
    return mix.digest()


def draw(grain: bytes, label: str) -> int:
    """A number from 0 to 2**64 - 1."""
    return int.from_bytes(hashlib.blake2b(grain + label.encode(), digest_size=8).digest(), "big")


def fraction(grain: bytes, label: str) -> float:
    """Evenly in [0, 1)."""
    return (draw(grain, label) >> 11) / (1 << 53)


def between(grain: bytes, label: str, low: int, high: int) -> int:
    return low + draw(grain, label) % (high - low + 1)


def words(grain: bytes, label: str, count: int) -> list[str]:
    stream = hashlib.shake_128(grain + label.encode()).digest(count)
    return list(map(_WORD_OF_BYTE.__getitem__, stream))


def prose(grain: bytes, label: str, tokens: int) -> str:
    """Sentences of about that many tokens."""
    count = max(1, round(tokens * _CHARS_PER_TOKEN / _CHARS_PER_WORD))
    drawn = words(grain, label, count)
    sentences = (
        " ".join(drawn[start : start + _WORDS_IN_SENTENCE]).capitalize() + "."
        for start in range(0, count, _WORDS_IN_SENTENCE)
    )
    return " ".join(sentences)


def tokens_of(characters: int) -> int:
    """About four characters a token, as tokenizers do on English."""
    return -(-characters // _CHARS_PER_TOKEN)


def cut_to_tokens(text: str, tokens: int | None) -> tuple[str, bool]:
    """The text within a token limit, and whether the limit cut it."""
    if tokens is None or tokens_of(len(text)) <= tokens:
        return text, False
    return text[: tokens * _CHARS_PER_TOKEN], True
