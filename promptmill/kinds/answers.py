"""A status of 200 is not yet an answer: this is what each kind's answer must have, and where its tokens are counted.

One decode of the few fields that matter; texts, vectors and pictures are skipped, not built.
"""

import json
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from promptmill.kinds import lenient
from promptmill.outcome import Usage

#: Counts above this are garbage: they are kept in 32-bit columns.
_MAX_TOKENS: Final = 2**31 - 1
#: How much of an upstream's own words is quoted.
_QUOTE_CHARACTERS: Final = 300


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What one look at an answer tells. (A msgspec struct: it is made for every answer, in 0.1 µs.)

    `problem` says in words why this is no answer of its kind, or is None. `is_json` is false where the reason is that
    it is not JSON at all (cut off, a proxy's page, not UTF-8).
    """

    usage: Usage
    problem: str | None = None
    is_json: bool = True


class Shape(msgspec.Struct, kw_only=True, gc=False):
    """What all kinds share. A subclass adds its own fields and, where types do not say it, `fault()`."""

    usage: Raw | UnsetType = UNSET

    def fault(self) -> str | None:
        """What is wrong though the types are right."""
        return None


class _Message(msgspec.Struct, gc=False):
    """Any object: content may be null (tool calls, a refusal) and is the reader's to judge."""


class _ChatChoice(msgspec.Struct, gc=False):
    message: _Message


class _Choice(msgspec.Struct, gc=False):
    text: str | None


class _Item(msgspec.Struct, gc=False):
    """Any object."""


class ChatAnswer(Shape, kw_only=True):
    choices: list[_ChatChoice]

    def fault(self) -> str | None:
        return None if self.choices else "choices is empty"


class CompletionsAnswer(Shape, kw_only=True):
    choices: list[_Choice]

    def fault(self) -> str | None:
        return None if self.choices else "choices is empty"


class DataAnswer(Shape, kw_only=True):
    """Embeddings and images."""

    data: list[_Item]

    def fault(self) -> str | None:
        return None if self.data else "data is empty"


class RerankAnswer(Shape, kw_only=True):
    """An empty list is an answer too: `top_n` may be 0, and a threshold may leave nothing."""

    results: list[_Item]


class TextAnswer(Shape, kw_only=True):
    """Transcriptions. Silence is the empty string."""

    text: str


class _Anything(msgspec.Struct, gc=False):
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Details(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


class _Counts(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


_ANYTHING = msgspec.json.Decoder(_Anything)
_COUNTS = msgspec.json.Decoder(_Counts | None)
_NOTHING = Usage()


def read(decoder: msgspec.json.Decoder[Any], answer: bytes) -> Reading:
    """Usage and fault of a 2xx answer whose kind answers in JSON. Never raises; `decoder` is of the kind's `Shape`."""
    try:
        if not answer.isascii():
            answer.decode()  # what is skipped is not looked into, and the answer is going into a file of JSON lines
        found: Shape = lenient.decode(decoder, answer)
    except msgspec.ValidationError as error:
        return _of_another_shape(answer, lenient.mismatch(error, "the answer").sentence)
    except msgspec.DecodeError as error:
        return Reading(_NOTHING, f"the answer is not JSON: {error}", is_json=False)
    except UnicodeDecodeError as error:
        return Reading(_NOTHING, f"the answer is not UTF-8: {error.reason} at byte {error.start}", is_json=False)
    except RecursionError:
        return Reading(_NOTHING, "the answer is nested too deeply")
    return Reading(_NOTHING if found.usage is UNSET else _counted(found.usage), found.fault())


def read_binary(answer: bytes) -> Reading:
    """The same for a kind that answers with bytes: anything but nothing, or an error in JSON."""
    if not answer:
        return Reading(_NOTHING, "the answer is empty")
    if answer[:1] == b"{":
        error = _own_words(answer)
        if error:
            return Reading(_NOTHING, f"the answer is an error: {error}")
    return Reading(_NOTHING)


def usage(answer: bytes) -> Usage:
    """The tokens that an answer of any kind says it took; 0 for what it does not say. Never raises."""
    found = _anything(answer)
    return _NOTHING if found is None or found.usage is UNSET else _counted(found.usage)


def _of_another_shape(answer: bytes, sentence: str) -> Reading:
    found = _anything(answer)
    if found is None:
        # The shape went wrong before the end was reached, and the end is not JSON.
        return Reading(_NOTHING, f"the answer is not JSON: {sentence}", is_json=False)
    words = _own_words(answer)
    return Reading(
        _NOTHING if found.usage is UNSET else _counted(found.usage),
        f"{sentence}; the answer says: {words}" if words else sentence,
    )


def _anything(answer: bytes) -> _Anything | None:
    try:
        return lenient.decode(_ANYTHING, answer)
    except msgspec.ValidationError:
        return _Anything()  # JSON, but no object
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _own_words(answer: bytes) -> str:
    """Of {"error": {"message": "…"}} or {"error": "…"}; "" where there is no error in it."""
    found = _anything(answer)
    error = None if found is None or found.error is UNSET else _loads(found.error)
    if isinstance(error, dict):
        error = error.get("message") or error
    # NUL: it goes into a column of text, and PostgreSQL takes all characters there but this one.
    return str(error)[:_QUOTE_CHARACTERS].replace("\0", "\ufffd") if error else ""


def _counted(raw: Raw) -> Usage:
    try:
        counts = _COUNTS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        counts = _salvaged(raw)
    if counts is None:
        return _NOTHING
    taken = counts.prompt_tokens_details or counts.input_tokens_details
    given = counts.completion_tokens_details or counts.output_tokens_details
    return Usage(
        _sane(counts.prompt_tokens or counts.input_tokens),
        _sane(counts.completion_tokens or counts.output_tokens),
        _sane(given.reasoning_tokens) if given else 0,
        _sane(taken.cached_tokens) if taken else 0,
    )


def _sane(count: int | None) -> int:
    return count if count is not None and 0 <= count <= _MAX_TOKENS else 0


def _salvaged(raw: Raw) -> _Counts:
    """The counts that are numbers, out of a usage in which some are not."""
    usage = _loads(raw)
    if not isinstance(usage, dict):
        return _Counts()
    counts = _Counts()
    for name in _Counts.__struct_fields__:
        value = usage.get(name)
        if isinstance(value, dict):
            details = _Details(*(_whole(value.get(detail)) for detail in _Details.__struct_fields__))
            setattr(counts, name, details if name.endswith("details") else None)
        elif not name.endswith("details"):
            setattr(counts, name, _whole(value))
    return counts


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if abs(value) <= _MAX_TOKENS else None


def _loads(raw: Raw) -> Any:
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError):  # the json module's errors are ValueErrors, bad UTF-8 too
        return None
