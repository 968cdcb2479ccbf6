"""The prompt of a chat call: whether it is one, and how many tokens it comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cli.simulate import checks
from cli.simulate.grain import tokens_of

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_LINKED_MEDIA = ("image_url", "video_url", "audio_url")
_OTHER_MEDIA = ("input_audio", "file", "refusal")
_MEDIA_CHARACTERS = 340  # 85 tokens, OpenAI's price of an image at low detail
_MESSAGE_CHARACTERS = 12  # what the role and the separators around a message come to


def prompt_tokens(body: Mapping[str, Any]) -> int:
    messages = body.get("messages")
    if messages is None:
        raise checks.missing("messages")
    if not isinstance(messages, list):
        raise checks.wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise checks.wrong_value("messages", "it must hold at least one message.")
    characters = sum(_message_size(message, at) for at, message in enumerate(messages))
    if offered := body.get("tools"):
        characters += len(msgspec.json.encode(offered))
    return tokens_of(characters)


def _message_size(message: object, at: int) -> int:
    """Its size in characters, once it is known to be a message."""
    if not isinstance(message, dict):
        raise checks.wrong_type(f"messages[{at}]", "an object", message)
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise checks.missing(f"messages[{at}].role")
    if role not in _ROLES:
        raise checks.wrong_value(f"messages[{at}].role", f"supported values are: {', '.join(sorted(_ROLES))}.")
    if isinstance(content, str):
        return _MESSAGE_CHARACTERS + len(content)
    if isinstance(content, list):
        return _MESSAGE_CHARACTERS + _parts_size(content, f"messages[{at}].content")
    if content is None and role == "assistant":
        return _MESSAGE_CHARACTERS + len(msgspec.json.encode(message.get("tool_calls")))
    if content is None:
        raise checks.missing(f"messages[{at}].content")
    raise checks.wrong_type(f"messages[{at}].content", "a string or an array of objects", content)


def _parts_size(parts: Sequence[object], param: str) -> int:
    return sum(_part_size(part, f"{param}[{at}]") for at, part in enumerate(parts))


def _part_size(part: object, param: str) -> int:
    if not isinstance(part, dict):
        raise checks.wrong_type(param, "an object", part)
    kind = part.get("type")
    if kind is None:
        raise checks.missing(f"{param}.type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise (
                checks.missing(f"{param}.text")
                if text is None
                else checks.wrong_type(f"{param}.text", "a string", text)
            )
        return len(text)
    if kind in _LINKED_MEDIA:
        link = part.get(kind)
        url = link.get("url") if isinstance(link, dict) else link
        if not isinstance(url, str):
            raise checks.missing(f"{param}.{kind}.url")
    elif kind not in _OTHER_MEDIA:
        raise checks.wrong_value(f"{param}.type", f"'{kind}' is not a kind of content.")
    return _MEDIA_CHARACTERS
