"""The headers that are the same for every request to an upstream: checked once, sent a million times."""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from promptmill.errors import SettingsError
from worker.transport.inflate import ACCEPT_ENCODING
from worker.transport.route import Route

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: They belong to the single request, or to the connection.
_NOT_EXTRA = frozenset({"content-type", "content-length", "transfer-encoding", "connection"})


def headers_of(route: Route, key: str, extra: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """All but the body's headers. `extra` wins over ours. Raises SettingsError, which never shows a value."""
    named = {
        "host": ("Host", route.authority),
        "user-agent": ("User-Agent", _user_agent()),
        "accept": ("Accept", "*/*"),
        "accept-encoding": ("Accept-Encoding", ACCEPT_ENCODING),
    }
    if key.strip():  # a key that was read from a file or a variable often ends with a newline
        named["authorization"] = ("Authorization", f"Bearer {key.strip()}")
    for name, value in extra.items():
        if not _NAME.fullmatch(name) or name.lower() in _NOT_EXTRA:
            raise SettingsError(f"the upstream's extra header {name!r} cannot be set")
        named[name.lower()] = (name, value.strip())
    for name, value in named.values():
        if not _VALUE.fullmatch(value):
            what = "key" if name == "Authorization" else f"extra header {name!r}"
            raise SettingsError(f"the upstream's {what} has characters that a header cannot carry; is it pasted right?")
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in named.values()]


def _user_agent() -> str:
    try:
        return f"promptmill/{version('promptmill')}"
    except PackageNotFoundError:
        return "promptmill"
