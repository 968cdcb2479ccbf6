"""Which path is answered by what, under /v1/v1 too: some SDKs append /v1 to a base URL that has it already."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cli.simulate.answers import chat, completions, embeddings, images, rerank, speech, transcriptions
from cli.simulate.call import Asked, Call, Headers, read_form, read_json
from cli.simulate.reply import Reply


@dataclass(frozen=True, slots=True)
class Kind:
    #: As the statistics count it.
    path: str
    read: Callable[[bytes, Headers], Asked]
    answer: Callable[[Call], Reply]


_KINDS = (
    Kind("/v1/chat/completions", read_json, chat.answer),
    Kind("/v1/completions", read_json, completions.answer),
    Kind("/v1/embeddings", read_json, embeddings.answer),
    Kind("/v1/rerank", read_json, rerank.answer),
    Kind("/v1/images/generations", read_json, images.answer),
    Kind("/v1/audio/speech", read_json, speech.answer),
    Kind("/v1/audio/generations", read_json, speech.answer),
    Kind("/v1/audio/transcriptions", read_form, transcriptions.transcribe),
    Kind("/v1/audio/translations", read_form, transcriptions.translate),
)

KINDS: Mapping[str, Kind] = {kind.path: kind for kind in _KINDS} | {f"/v1{kind.path}": kind for kind in _KINDS}
