"""One call as the answering side sees it: the checked body, who asks, and the grain that its answer is drawn from."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from cli.simulate import checks
from cli.simulate.multipart import Upload, parse_multipart
from cli.simulate.reply import Refusal

#: Whose SDK asks. Shapes differ in places, and both are served on the same paths.
Dialect = Literal["openai", "together", "other"]

_NO_FILES: Mapping[str, Upload] = {}
_decode = msgspec.json.Decoder().decode


class Headers(NamedTuple):
    """The request headers that matter, picked out in one pass."""

    #: The API key, empty when there is none.
    key: str
    content_type: str
    dialect: Dialect
    #: How the client reached us, for URLs that lead back here.
    origin: str


def pick_headers(raw: Sequence[tuple[bytes, bytes]], scheme: str) -> Headers:
    key = content_type = user_agent = ""
    host = "127.0.0.1"
    for name, value in raw:
        if name == b"authorization":
            key = _key_of(value.decode("latin-1"))
        elif name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"user-agent":
            user_agent = value.decode("latin-1")
        elif name == b"host":
            host = value.decode("latin-1")
    return Headers(key, content_type, _dialect_of(user_agent), f"{scheme}://{host}")


def _key_of(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


@lru_cache(maxsize=256)
def _dialect_of(user_agent: str) -> Dialect:
    agent = user_agent.lower()
    if "together" in agent:
        return "together"
    return "openai" if "openai" in agent else "other"


class Call(NamedTuple):
    body: Mapping[str, Any]
    files: Mapping[str, Upload]
    model: str
    #: 16 bytes that stand for (seed, kind, request): all that an answer varies by.
    grain: bytes
    #: For values that should not depend on the rest of the request, such as the vector of a text.
    seed: int
    headers: Headers
    answer_tokens: tuple[int, int]

    @property
    def dialect(self) -> Dialect:
        return self.headers.dialect

    @property
    def created(self) -> int:
        """A time stamp that belongs to the request, not to the clock: a rerun's answers are equal in every byte."""
        return 1_750_000_000 + int.from_bytes(self.grain[:3], "big")

    @property
    def hex_id(self) -> str:
        return self.grain.hex()


class Asked(NamedTuple):
    """The body of a request after its first look, with the bytes that make it the same request when it comes again."""

    body: Mapping[str, Any]
    files: Mapping[str, Upload]
    canonical: bytes


def read_json(raw: bytes, _: Headers) -> Asked:
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"We could not parse the JSON body of your request. ({error})"
        raise Refusal(400, message, code="invalid_json") from error
    if not isinstance(body, dict):
        message = f"The body of your request must be a JSON object, but it is {checks.json_name(body)}."
        raise Refusal(400, message, code="invalid_type")
    return Asked(body, _NO_FILES, raw)


def read_form(raw: bytes, headers: Headers) -> Asked:
    """Identity is that of the parts: a client draws a new boundary for each try of the same request."""
    form = parse_multipart(headers.content_type, raw)
    body: dict[str, Any] = {}
    for name, value in form.fields:
        if name.endswith("[]"):
            body.setdefault(name[:-2], []).append(value)
        else:
            body[name] = value
    return Asked(body, form.files, form.canonical_bytes())
