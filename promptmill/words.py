"""What an answer says, for people and for tables: its text, and apart from it what the model thought before."""

import re
from typing import Any, Final, NamedTuple

import msgspec

from promptmill.job import State
from promptmill.kinds import lenient
from promptmill.output import json_of, plain_text_of
from promptmill.store.results import Result


class Said(NamedTuple):
    """An answer in words: what it says, and what the model thought before. None where there is no such thing."""

    text: str | None
    reasoning: str | None


class _Message(msgspec.Struct, gc=False):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    text: Any = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    text: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)
_NOTHING: Final = Said(None, None)


def said(result: Result) -> Said:
    """The words of a success: chat, completions, transcriptions; of several choices the first. Never raises.

    Thinking is told apart wherever the upstream put it: in a field of its own, or before the answer in <think> tags.
    """
    if result.state is not State.SUCCEEDED or not result.body:
        return _NOTHING
    if json_of(result) is None:
        return Said(plain_text_of(result), None)
    try:
        answer = lenient.decode(_ANSWER, result.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING
    if not answer.choices:
        return Said(answer.text if isinstance(answer.text, str) else None, None)
    choice = answer.choices[0]
    if choice.message is None:
        return _without_thinking(choice.text) if isinstance(choice.text, str) else _NOTHING
    message = choice.message
    text, thought = _NOTHING
    content = _joined(message.content)
    if content is None and isinstance(message.refusal, str):
        content = message.refusal
    if content is not None:
        text, thought = _without_thinking(content)
    field = message.reasoning_content or message.reasoning
    return Said(text, field if field and isinstance(field, str) else thought)


def text_of(result: Result) -> str | None:
    """The answer's text, without the thinking before it; None for failures and for answers that are no text."""
    return said(result).text


def reasoning_of(result: Result) -> str | None:
    """What the model thought before it answered; None where it did not, or keeps it to itself."""
    return said(result).reasoning


def _joined(content: Any) -> str | None:
    """A message's content: a text, or a list of parts of which some are text."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str)) or None
    return content if isinstance(content, str) else None


_OPENING: Final = "<think>"
_CLOSING: Final = "</think>"
#: Some chat templates write the opening tag into the prompt. What is left of such an answer's thinking ends with a
#: closing tag on a line of its own; a tag that the answer only mentions does not stand like that.
_CLOSING_ALONE = re.compile(r"^</think>[ \t]*$", re.MULTILINE)


def _without_thinking(content: str) -> Said:
    body = content.lstrip()
    if body.startswith(_OPENING):
        thought, closing, text = body.removeprefix(_OPENING).partition(_CLOSING)
        # Without its end it was cut off by max_tokens while thinking: there is no answer.
        return Said(text.lstrip() if closing else "", thought.strip() or None)
    if _CLOSING in content and _OPENING not in content and (end := _CLOSING_ALONE.search(content)):
        return Said(content[end.end() :].lstrip(), content[: end.start()].strip() or None)
    return Said(content, None)
