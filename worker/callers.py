"""What a caller who waits is to see of an upstream's headers. The rest is about the connection, or says nothing."""

from collections.abc import Mapping
from typing import Final

import httpx

_NAMES: Final = frozenset(
    {"retry-after", "retry-after-ms", "x-request-id", "x-should-retry", "content-disposition", "content-language"}
)
_BEGINNINGS: Final = ("x-ratelimit-", "x-tokenlimit-", "openai-", "x-together-", "x-inference-")


def headers_for_caller(headers: httpx.Headers) -> Mapping[str, str]:
    """Those that matter, by their names in lower case. The content type is not among them: outcomes have it anyway."""
    return {name: value for name, value in headers.items() if name in _NAMES or name.startswith(_BEGINNINGS)}
