"""What a caller did wrong, or what keeps us from serving, as an exception that every route may raise.

How it looks on the wire is the caller's dialect's (`dialects/`); that it is told at all is `door.py`'s.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: OpenAI's name for each status.
_TYPES: Final = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
)
_FIRST_SERVER_ERROR: Final = 500


class ApiError(Exception):
    """An answer that is an error. `message` says what is wrong and what to do; `code` is for programs; `param` names
    the field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        extra: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """`extra` are members beside "error" in the body."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers
        self.extra = extra

    @property
    def type(self) -> str:
        """OpenAI's `error.type`."""
        if self.status >= _FIRST_SERVER_ERROR:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")


def not_found(what: str, reference: str) -> ApiError:
    """There is no such thing, or it is another tenant's, which is the same to this one."""
    return ApiError(404, f"No {what} found with id {reference[:100]!r}.", code="not_found", param="id")


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request is wrong."""
    return ApiError(400, message, code=code or "invalid_request", param=param)
