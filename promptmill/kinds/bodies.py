"""A request that is certain to fail should fail before it is sent: this is what each kind's body must have.

Only that: values belong to the upstream, which knows more of them every month. A body is decoded once, into just the
fields that are needed; what was learned on the way (model, lengths) comes back with the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from promptmill.kinds import lenient
from promptmill.kinds.tokens import MEDIA_TOKENS, MESSAGE_TOKENS, TOKEN, text_weight, tokens

#: Longest model name: it is kept in indexed columns.
MAX_MODEL_CHARACTERS: Final = 512
#: Token counts are kept in 32-bit columns; nobody means more.
_MAX_TOKENS: Final = 2**31 - 1

_Items = list[str | int | list[int]]
_Object = dict[str, Raw]


class BodyFacts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a body before it is sent. (A msgspec struct: it is made for every line, in 0.1 µs.)

    `model` is None where the body names none. `prompt_tokens` is an estimate, at least 1. `max_tokens` is what the
    body allows the answer to have, over all `n` choices, or None. `expects_json` is true where a JSON mode or a
    JSON schema was asked for.
    """

    model: str | None
    prompt_tokens: int
    max_tokens: int | None = None
    expects_json: bool = False


@dataclass(frozen=True, slots=True)
class BodyProblem:
    """Why a body would fail: a validation code, one sentence that says what to change, and the field to blame."""

    code: str
    message: str
    param: str | None = None


class Body(msgspec.Struct, kw_only=True, gc=False):
    """What all kinds share. A subclass adds its own fields, `weight()` and, where types do not say it, `fault()`."""

    model: str | None = None
    stream: bool | None = None
    n: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    response_format: Raw | UnsetType = UNSET

    def weight(self) -> int:
        """Of the prompt, in 24ths of a token."""
        raise NotImplementedError

    def fault(self) -> BodyProblem | None:
        """What is wrong though the types are right."""
        return None


class _Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part | str] | None = None
    tool_calls: Raw | UnsetType = UNSET

    def weight(self) -> int:
        total = MESSAGE_TOKENS * TOKEN
        if self.tool_calls is not UNSET:
            total += _raw_weight(self.tool_calls)
        content = self.content
        if isinstance(content, str):
            return total + text_weight(content)
        for part in content or ():
            if isinstance(part, str):
                total += text_weight(part)
            elif part.text is not None:
                total += text_weight(part.text)
            elif part.type not in {"text", "refusal"}:
                total += MEDIA_TOKENS * TOKEN
        return total


class ChatBody(Body, kw_only=True):
    messages: list[_Message]
    tools: Raw | UnsetType = UNSET

    def weight(self) -> int:
        total = 0 if self.tools is UNSET else _raw_weight(self.tools)
        for message in self.messages:
            total += message.weight()
        return total

    def fault(self) -> BodyProblem | None:
        return None if self.messages else _empty("messages")


class CompletionsBody(Body, kw_only=True):
    prompt: str | _Items

    def weight(self) -> int:
        return _items_weight(self.prompt)

    def fault(self) -> BodyProblem | None:
        return _empty("prompt") if self.prompt == [] else None


class EmbeddingsBody(Body, kw_only=True):
    input: str | list[str | int | list[int] | _Object]

    def weight(self) -> int:
        return _items_weight(self.input)

    def fault(self) -> BodyProblem | None:
        return _empty("input") if self.input == [] else None


class RerankBody(Body, kw_only=True):
    query: str | _Object
    documents: list[str | _Object]

    def weight(self) -> int:
        # The model reads the query again with every document.
        return _items_weight([self.query]) * len(self.documents) + _items_weight(self.documents)

    def fault(self) -> BodyProblem | None:
        return None if self.documents else _empty("documents")


class ImagesBody(Body, kw_only=True):
    prompt: str

    def weight(self) -> int:
        return text_weight(self.prompt)


class SpeechBody(Body, kw_only=True):
    input: str
    voice: str | _Object

    def weight(self) -> int:
        return text_weight(self.input)


class TranscriptionsBody(Body, kw_only=True):
    file: str
    prompt: str | None = None

    def weight(self) -> int:
        return MEDIA_TOKENS * TOKEN + text_weight(self.prompt or "")

    def fault(self) -> BodyProblem | None:
        return None if self.file else _empty("file")


class _ResponseFormat(msgspec.Struct, gc=False):
    type: str | None = None


_RESPONSE_FORMAT = msgspec.json.Decoder(_ResponseFormat)


def check(decoder: msgspec.json.Decoder[Any], body: bytes, *, allow_stream: bool = False) -> BodyFacts | BodyProblem:
    """The facts of a body, or why it would fail. Never raises.

    `decoder` is that of the kind's `Body`. That the whole of `body` is UTF-8 is the caller's to know: strings that are
    not needed here are not looked into.
    """
    try:
        read: Body = lenient.decode(decoder, body)
    except msgspec.ValidationError as error:
        found = lenient.mismatch(error, "the body")
        code = "missing_required_parameter" if found.missing and found.param else "invalid_request"
        return BodyProblem(code, found.sentence, found.param or None)
    except msgspec.DecodeError as error:
        return BodyProblem("invalid_request", f"the body is not JSON: {error}")
    except UnicodeDecodeError as error:
        return BodyProblem("invalid_encoding", f"the body is not UTF-8: {error.reason}")
    except RecursionError:
        return BodyProblem("invalid_request", "the body is nested too deeply")
    if read.stream and not allow_stream:
        return BodyProblem(
            "stream_not_supported",
            "stream is true, but a job's answer is kept whole and read later: remove stream (or set it to false)",
            "stream",
        )
    problem = read.fault() or (None if read.n is None else _n_fault(read.n)) or model_fault(read.model)
    if problem is not None:
        return problem
    return BodyFacts(read.model, tokens(read.weight()), _allowed(read), _expects_json(read.response_format))


def _n_fault(n: Any) -> BodyProblem | None:
    if isinstance(n, int) and n < 1:
        return BodyProblem("invalid_request", f"n must be at least 1, not {n}", "n")
    return None


def model_fault(model: str | None) -> BodyProblem | None:
    """What is wrong with a model's name; none is no fault."""
    if model is None:
        return None
    if not model:
        return BodyProblem("invalid_request", "model is an empty string", "model")
    if len(model) > MAX_MODEL_CHARACTERS:
        return BodyProblem("invalid_request", f"model has more than {MAX_MODEL_CHARACTERS} characters", "model")
    if not model.isprintable() or "\ufffd" in model:
        # It is kept in indexed columns, in log lines and in messages; U+FFFD is what an unpaired surrogate is read as.
        return BodyProblem("invalid_request", "model is not the name of a model: it cannot be printed", "model")
    return None


def _allowed(read: Body) -> int | None:
    most = read.max_tokens if read.max_completion_tokens is None else read.max_completion_tokens
    if most is None:
        return None
    if not isinstance(most, int | float) or isinstance(most, bool) or most < 0:
        return None  # the upstream's to judge; some take -1 for "no limit"
    choices = read.n if isinstance(read.n, int) else 1
    return min(int(most) * choices, _MAX_TOKENS)


def _expects_json(response_format: Raw | UnsetType) -> bool:
    if response_format is UNSET:
        return False
    try:
        return _RESPONSE_FORMAT.decode(response_format).type in {"json_object", "json_schema"}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False  # "json", "url", "mp3": formats of other kinds


def _raw_weight(raw: Raw) -> int:
    return 6 * memoryview(raw).nbytes


def _items_weight(items: str | Sequence[str | int | list[int] | _Object]) -> int:
    """Of text, texts, token ids, lists of token ids or objects with texts in them."""
    if isinstance(items, str):
        return text_weight(items)
    total = 0
    for item in items:
        if isinstance(item, str):
            total += text_weight(item)
        elif isinstance(item, int):
            total += TOKEN
        elif isinstance(item, Mapping):
            total += sum(_object_weight(value) for value in item.values())
        else:
            total += TOKEN * len(item)
    return total


def _object_weight(value: Raw) -> int:
    return MEDIA_TOKENS * TOKEN if bytes(value)[:6] == b'"data:' else _raw_weight(value)


def _empty(field: str) -> BodyProblem:
    return BodyProblem("invalid_request", f"{field} is empty", field)
