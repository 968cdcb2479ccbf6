"""Undoes Content-Encoding piece by piece, because a small compressed answer may hide a body that fills the memory."""

import zlib

#: What we ask for. `zlib` reads both by their first bytes; zstd and brotli would save little on answers of this size.
ACCEPT_ENCODING = "gzip, deflate"
CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})

_EITHER = zlib.MAX_WBITS | 32
_BARE_DEFLATE = -zlib.MAX_WBITS


class Inflater:
    """A decoder for one body. `finished` says whether its end was seen."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_EITHER)
        self._started = False

    @property
    def finished(self) -> bool:
        """A body that breaks off before its end is not finished; one without a byte is."""
        return self._decoder.eof or not self._started

    def feed(self, data: bytes, limit: int) -> bytes:
        """The decoded bytes, `limit` of them at most: ask for one more than is allowed, and see it exceeded.

        Raises zlib.error for bytes that are not what they claim to be.
        """
        if self._started:
            return self._decoder.decompress(data, limit)
        try:
            plain = self._decoder.decompress(data, limit)
        except zlib.error:
            # Some servers mean bare deflate by "deflate", without zlib's envelope around it.
            self._decoder = zlib.decompressobj(_BARE_DEFLATE)
            plain = self._decoder.decompress(data, limit)
        self._started = True
        return plain
