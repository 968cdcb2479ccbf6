"""The .lua files by name: each with what it builds on, and with the numbers that it shares with the Python side."""

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

from worker.limits import gcra
from worker.limits.bucket import BLOCK_SECONDS
from worker.limits.share import FRESH_SECONDS, LEASE_SECONDS

#: A bucket that no worker knows any more is forgotten after this long.
KEEP_SECONDS: Final = 24 * 3600

_NUMBERS: Final = {
    "WINDOW": gcra.WINDOW_SECONDS,
    "BURST_PART": gcra.BURST_PART,
    "ROUNDING": gcra.ROUNDING_SECONDS,
    "BLOCK": BLOCK_SECONDS,
    "LEASE": LEASE_SECONDS,
    "FRESH": FRESH_SECONDS,
    "KEEP": KEEP_SECONDS,
}


class Script(NamedTuple):
    """A script, and the name by which Redis knows it once it has seen it."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """`name`.lua."""
    folder = files("worker.limits")
    numbers = "".join(f"local {key} = {value!r}\n" for key, value in _NUMBERS.items())
    text = numbers + "".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in ("ledger", name))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())
