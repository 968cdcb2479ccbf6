"""One of the n answers of a chat call, before it takes the shape of a message or of a stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    index: int
    #: Text, thoughts included; None where a tool is called.
    content: str | None
    tool_call: Mapping[str, Any] | None
    finish_reason: str
    completion_tokens: int
    reasoning_tokens: int = 0

    def as_message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_call is not None:
            message["tool_calls"] = [{**self.tool_call, "index": 0}]
        return {"index": self.index, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
