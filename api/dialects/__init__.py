"""The same facts in the words of OpenAI's clients and of Together's.

Their paths coincide, so the caller tells which one it speaks: every Together client has its name in the User-Agent.
Whoever does not say (curl) is answered in OpenAI's, but where the input file's purpose is Together's `batch-api`.
"""

from enum import StrEnum
from typing import Any

from starlette.requests import HTTPConnection

from api.errors import ApiError


class Dialect(StrEnum):
    """Whose words."""

    OPENAI = "openai"
    TOGETHER = "together"


def spoken(request: HTTPConnection) -> Dialect:
    """What the caller speaks, by its User-Agent."""
    agent = request.headers.get("user-agent", "")
    return Dialect.TOGETHER if "together" in agent.lower() else Dialect.OPENAI


#: Where Together's errors are a bare sentence; its synchronous paths have OpenAI's envelope.
_SENTENCES = ("/v1/files", "/v1/batches")


def error_body(error: ApiError, dialect: Dialect, path: str) -> dict[str, Any]:
    """An error as the caller's client reads it."""
    if dialect is Dialect.TOGETHER and path.startswith(_SENTENCES):
        return {"error": error.message, **error.extra}
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
        **error.extra,
    }
