"""Whatever differs between the seven endpoints differs here, in one entry each: path, body, answer.

Adding a kind is adding an entry, with what its body and its answer must have. Nothing else in the program asks which
kind it has before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from promptmill.kinds import answers, bodies, lenient
from promptmill.kinds.answers import Reading
from promptmill.kinds.bodies import BodyFacts, BodyProblem
from promptmill.kinds.multipart import Fields, multipart_fields
from promptmill.outcome import Usage

__all__ = [
    "KINDS",
    "PATHS",
    "BodyFacts",
    "BodyProblem",
    "Kind",
    "Reading",
    "kind_of_path",
    "known_path",
    "multipart_fields",
]

#: Formats of a transcription that are text instead of JSON.
_TEXT_FORMATS = frozenset({"text", "srt", "vtt"})


class _Format(msgspec.Struct):
    response_format: str | None = None


_FORMAT = msgspec.json.Decoder(_Format)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One kind of endpoint: a constant, compared by identity.

    `paths` begin with /v1, the canonical one first. `sends` is how the body travels. `text_field` is the field of the
    body that a plain text line fills, or None where one text is not enough; chat has messages instead. Of a kind that
    does not answer in tokens only the prompt is paid by the token.
    """

    name: str
    paths: tuple[str, ...]
    body: msgspec.json.Decoder[Any]
    #: None: the answer is bytes, whatever was asked.
    answer: msgspec.json.Decoder[Any] | None
    sends: Literal["json", "multipart"] = "json"
    text_field: str | None = None
    answers_in_tokens: bool = False

    @property
    def path(self) -> str:
        """The canonical path."""
        return self.paths[0]

    def check(self, body: bytes, *, allow_stream: bool = False) -> BodyFacts | BodyProblem:
        """The facts of a body (UTF-8), or why it is certain to fail. Never raises.

        A body without a model is no problem here: `facts.model` is None, and whoever has a default decides.
        `allow_stream` is for callers that hand the stream on.
        """
        return bodies.check(self.body, body, allow_stream=allow_stream)

    @staticmethod
    def multipart_fields(body: bytes) -> tuple[Fields, str | None]:
        """The body as form fields, and its file: see `multipart.multipart_fields`."""
        return multipart_fields(body)

    def answers_binary(self, body: bytes) -> bool:
        """Will the answer to `body` be kept as it comes (audio, plain text), and not be JSON?"""
        if self.answer is None:
            return True
        if self.sends == "json":
            return False
        try:
            return lenient.decode(_FORMAT, body).response_format in _TEXT_FORMATS
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False

    def read(self, answer: bytes) -> Reading:
        """Usage and fault of a 2xx answer, in one decode. Never raises.

        Where `answers_binary(body)` is true of a kind that otherwise answers in JSON, do not ask: any text is right.
        """
        return answers.read_binary(answer) if self.answer is None else answers.read(self.answer, answer)

    def usage(self, answer: bytes) -> Usage:
        """The tokens that an answer says it took; 0 for what it does not say. Never raises."""
        return Usage() if self.answer is None else answers.usage(answer)

    def valid(self, answer: bytes) -> str | None:
        """Why `answer` is no answer of this kind, in words; None where it is one. Never raises."""
        return self.read(answer).problem


_TABLE = (
    Kind(
        "chat",
        ("/v1/chat/completions",),
        msgspec.json.Decoder(bodies.ChatBody),
        msgspec.json.Decoder(answers.ChatAnswer),
        answers_in_tokens=True,
    ),
    Kind(
        "completions",
        ("/v1/completions",),
        msgspec.json.Decoder(bodies.CompletionsBody),
        msgspec.json.Decoder(answers.CompletionsAnswer),
        text_field="prompt",
        answers_in_tokens=True,
    ),
    Kind(
        "embeddings",
        ("/v1/embeddings",),
        msgspec.json.Decoder(bodies.EmbeddingsBody),
        msgspec.json.Decoder(answers.DataAnswer),
        text_field="input",
    ),
    Kind(
        "rerank",
        ("/v1/rerank",),
        msgspec.json.Decoder(bodies.RerankBody),
        msgspec.json.Decoder(answers.RerankAnswer),
    ),
    Kind(
        "images",
        ("/v1/images/generations",),
        msgspec.json.Decoder(bodies.ImagesBody),
        msgspec.json.Decoder(answers.DataAnswer),
        text_field="prompt",
    ),
    Kind(
        "speech",
        ("/v1/audio/speech", "/v1/audio/generations"),
        msgspec.json.Decoder(bodies.SpeechBody),
        None,
        text_field="input",
    ),
    Kind(
        "transcriptions",
        ("/v1/audio/transcriptions", "/v1/audio/translations"),
        msgspec.json.Decoder(bodies.TranscriptionsBody),
        msgspec.json.Decoder(answers.TextAnswer),
        sends="multipart",
    ),
)

#: Every kind, by its name.
KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _TABLE})
#: Every path there is, and its kind.
PATHS: Mapping[str, Kind] = MappingProxyType({path: kind for kind in _TABLE for path in kind.paths})


def known_path(path: str) -> str | None:
    """`path` as it stands in PATHS, or None: /v1/v1/rerank (a doubled base), rerank and /v1/rerank/ are /v1/rerank.

    >>> known_path("/v1/v1/rerank/"), known_path("/rerank"), known_path("/v1/responses")
    ('/v1/rerank', '/v1/rerank', None)
    """
    if path in PATHS:
        return path
    rest = path.strip("/")
    while rest.startswith("v1/"):
        rest = rest.removeprefix("v1/").lstrip("/")
    plain = f"/v1/{rest}"
    return plain if plain in PATHS else None


def kind_of_path(path: str) -> Kind | None:
    """The kind that answers at `path`, written in any of the ways that `known_path` knows; None for others."""
    plain = known_path(path)
    return None if plain is None else PATHS[plain]
