"""From what a line has to what is sent, one function for each form."""

import json
from collections.abc import Mapping
from enum import StrEnum

import msgspec
from msgspec import UNSET, Raw, UnsetType

from promptmill.jsonl import BLANK, BOM
from promptmill.kinds import KINDS, PATHS, Kind, known_path
from promptmill.request.defaults import Defaults, known_paths
from promptmill.request.document import BODY_FIELDS, Document, Fields, LineFields, Refused, utf8, wrong_shape
from promptmill.request.members import last_value, members, without

_CHAT = KINDS["chat"]


class Form(StrEnum):
    """How a line says what it wants."""

    #: {"custom_id": …, "method": "POST", "url": "/v1/…", "body": {…}}, or the same without method and url.
    ENVELOPE = "envelope"
    #: The line is the body.
    BARE = "bare"
    #: {"prompt": "…"}: one user message; what else is in it are parameters.
    PROMPT = "prompt"
    #: Not JSON: the line is the text.
    TEXT = "text"


class Request(msgspec.Struct, frozen=True, gc=False):
    """What is sent: `body` to `path` (which begins with /v1)."""

    kind: str
    path: str
    model: str
    body: bytes


def form_of(fields: LineFields, defaults: Defaults) -> Form:
    """Which of the JSON forms a line has."""
    if fields.body is not UNSET or fields.url is not None or fields.method is not None:
        return Form.ENVELOPE
    if fields.messages is UNSET and fields.prompt is not UNSET and _is_string(fields.prompt):
        kind = fields.kind() if defaults.endpoint is None else _kind_of_default(defaults.endpoint)
        if kind is _CHAT or (defaults.endpoint is None and kind is KINDS["completions"]):
            return Form.PROMPT
    return Form.BARE


def _is_string(raw: Raw) -> bool:
    return memoryview(raw)[0] == ord('"')


def _kind_of_default(endpoint: str) -> Kind:
    return PATHS[_path_of_default(endpoint)]


def _path_of_default(endpoint: str) -> str:
    path = known_path(endpoint)
    if path is None:  # Defaults has made sure of it
        raise Refused("invalid_url", f"the endpoint {endpoint} is not known", "url")
    return path


def build(document: Document, form: Form, defaults: Defaults) -> Request:
    """The request of a line of JSON. Raises Refused."""
    if form is Form.ENVELOPE:
        return _from_envelope(document, defaults)
    fields = document.fields
    if form is Form.PROMPT:
        return _from_prompt(document, defaults)
    path = _path(fields, None, defaults)
    unwanted = set() if fields.custom_id is UNSET else {"custom_id"}
    return _with_model(path, document.content, fields.model, defaults, unwanted)


def _from_envelope(document: Document, defaults: Defaults) -> Request:
    fields = document.fields
    if fields.method is not None and fields.method.upper() != "POST":
        raise Refused("invalid_method", f"method must be POST, not {fields.method[:20]!r}", "method")
    raw = b"null" if fields.body is UNSET else bytes(fields.body)
    if raw == b"null":
        raise Refused("missing_required_parameter", "body is missing", "body")
    if raw[:1] != b"{":
        raise Refused("invalid_request", "body must be an object", "body")
    try:
        inner = BODY_FIELDS.decode(raw)
    except msgspec.ValidationError as error:
        raise wrong_shape(error, raw) from None
    path = _path(inner, fields.url, defaults)
    if document.mended:
        raw = last_value(document.content.decode(), "body").encode()
    return _with_model(path, raw, inner.model, defaults, set())


def _path(fields: Fields, url: str | None, defaults: Defaults) -> str:
    if url is not None:
        path = known_path(url)
        if path is None:
            raise Refused("invalid_url", f"the url {url[:100]!r} is not known: it must be {known_paths()}", "url")
        return path
    if defaults.endpoint is not None:
        return _path_of_default(defaults.endpoint)
    kind = fields.kind()
    if kind is None:
        raise Refused(
            "missing_required_parameter",
            "there are no messages, prompt, input, query or file, so it is not clear what is asked",
            "messages",
        )
    return kind.path


def _model(model: str | UnsetType | None, defaults: Defaults) -> str:
    if model is not UNSET and model is not None:
        return model
    if defaults.model is None:
        raise Refused(
            "missing_required_parameter",
            'no model is named: add "model" to the body, or name one for all lines (--model, model_id)',
            "model",
        )
    return defaults.model


def _with_model(
    path: str, body: bytes, model: str | UnsetType | None, defaults: Defaults, unwanted: set[str]
) -> Request:
    """The body as it came but for what is unwanted in it, and with the default model if it has none."""
    name = _model(model, defaults)
    if model is None:  # null: two fields of one name would be read one way here and another way there
        unwanted.add("model")
    if unwanted:
        body = without(body, unwanted)
    if model is UNSET or model is None:
        rest = body[1:]
        comma = b"" if rest.lstrip(BLANK).startswith(b"}") else b","
        body = b'{"model":' + msgspec.json.encode(name) + comma + rest
    return Request(PATHS[path].name, path, name, body)


def _from_prompt(document: Document, defaults: Defaults) -> Request:
    text = document.content.decode()
    parameters: dict[str, bytes] = {}
    prompt = b""
    for name, start, value, end in members(text):
        if name == "prompt":
            prompt = text[value:end].encode()
        elif name not in {"custom_id", "model"}:
            parameters[name] = text[start:end].encode()
    return _written(_CHAT.path, _model(document.fields.model, defaults), prompt, defaults, parameters)


def build_from_text(data: bytes, defaults: Defaults) -> Request:
    """The request of a line of text. Raises Refused."""
    lines = data.removeprefix(BOM).split(b"\n")
    text = utf8(next((line for line in lines if line.strip(BLANK)), b"")).removesuffix(b"\r").decode()
    path = _CHAT.path if defaults.endpoint is None else _path_of_default(defaults.endpoint)
    return _written(path, _model(None, defaults), msgspec.json.encode(text), defaults, {})


def _written(path: str, model: str, text: bytes, defaults: Defaults, parameters: Mapping[str, bytes]) -> Request:
    """A body of our own around the JSON string `text`; `parameters` are whole members, by name."""
    kind = PATHS[path]
    if kind is _CHAT:
        asked = b'"messages":[{"role":"user","content":' + text + b"}]"
    elif kind.text_field is not None:
        asked = f'"{kind.text_field}":'.encode() + text
    else:
        raise Refused("invalid_request", f"a text alone cannot be a {kind.name} job: write the line as JSON")
    parts = [
        b'"model":' + msgspec.json.encode(model),
        asked,
        *parameters.values(),
        *(
            json.dumps(name).encode() + b":" + value
            for name, value in defaults.written.items()
            if name not in parameters
        ),
    ]
    return Request(kind.name, path, model, b"{" + b",".join(parts) + b"}")
