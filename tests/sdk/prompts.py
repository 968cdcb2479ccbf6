"""What is asked through every SDK."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MODEL = "plain/model"
QUESTION: list[Any] = [{"role": "user", "content": "How far is the mill?"}]
PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.com/mill.png"}},
        ],
    }
]
TOOL: Any = {
    "type": "function",
    "function": {"name": "go", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}},
}
SOUND = ("mill.mp3", b"\xff\xfb" * 20_000)

_ENDED = ("completed", "failed", "expired", "cancelled")


def openai_lines(count: int, *, first: int = 0, **others: Any) -> bytes:
    """A batch file as OpenAI has it; `others` stand in every body."""
    fixed = {"method": "POST", "url": "/v1/chat/completions"}
    return _lines([{"custom_id": str(n), **fixed, "body": _body(n, **others)} for n in range(first, first + count)])


def together_lines(count: int, *, first: int = 0, **others: Any) -> bytes:
    """A batch file as Together has it."""
    return _lines([{"custom_id": str(n), "body": _body(n, **others)} for n in range(first, first + count)])


def _body(number: int, **others: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"How far is mill {number}?"}], **others}


def _lines(values: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def finished(retrieve: Callable[[], T], kind: type[T], seconds: float = 20.0) -> T:
    """Poll a batch until it has ended, as people do."""
    deadline = time.monotonic() + seconds
    while True:
        batch = retrieve()
        assert isinstance(batch, kind)
        if str(getattr(batch, "status", "")).lower() in _ENDED:
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
