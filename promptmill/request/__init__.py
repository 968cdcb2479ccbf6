"""A line becomes a request here, twice: when the input is checked, and when the job is sent.

Both go through the same steps, so what was checked is what is sent. What a producer wrote is sent byte for byte; only
what was not part of the upstream's body (promptmill's custom_id) is taken out, and only a model that is missing is put
in.
"""

import msgspec

from promptmill.errors import LineError, UsageError
from promptmill.jsonl import InputFormat, Line
from promptmill.kinds import KINDS, BodyProblem, known_path, lenient
from promptmill.request.defaults import Defaults
from promptmill.request.document import MAX_CUSTOM_ID, MAX_DEPTH, Refused, custom_id_of, read, too_deep
from promptmill.request.forms import Form, Request, build, build_from_text, form_of

__all__ = [
    "MAX_CUSTOM_ID",
    "MAX_DEPTH",
    "Defaults",
    "Form",
    "ParsedLine",
    "Request",
    "parse_line",
    "render",
    "streams",
    "too_deep",
]


class ParsedLine(msgspec.Struct, frozen=True, gc=False):
    """What is known of a line's job before it is sent. (A msgspec struct: there are millions.)

    `kind` is a name of KINDS, `path` its path. `body_bytes` is the length of the body as it will be sent,
    `prompt_tokens` an estimate (at least 1), `max_tokens` what the answer may have, or None.
    """

    custom_id: str | None
    kind: str
    path: str
    model: str
    form: Form
    body_bytes: int
    prompt_tokens: int
    max_tokens: int | None


def parse_line(
    line: Line,
    input_format: InputFormat,
    defaults: Defaults,
    *,
    max_body_bytes: int,
    endpoint_check: str | None = None,
    allow_stream: bool = False,
) -> ParsedLine | LineError:
    """What a line asks for, or what is wrong with it. Never raises.

    `max_body_bytes` bounds the body as it would be sent. `endpoint_check` is the path that all lines of a batch must
    have, where its producer said one; give it as `defaults.endpoint` too, and lines without a url have it.
    `allow_stream`: somebody is there to take a streamed answer.
    """
    try:
        return _parsed(line, input_format, defaults, max_body_bytes, endpoint_check, allow_stream=allow_stream)
    except Refused as refused:
        problem = refused.problem
        return LineError(line.number, problem.code, problem.message, problem.param)
    except RecursionError:  # within MAX_DEPTH: the caller's own stack is nearly full
        return LineError(line.number, "invalid_json_line", "lists and objects are nested too deeply")


def render(data: bytes, form: Form | None, defaults: Defaults) -> Request:
    """The request of a line that `parse_line` accepted with this form and these defaults: its facts are this request's.

    `form` is None where it was not settled at intake; then the line is JSON. Raises UsageError where the line was not
    accepted, or the defaults are not those.
    """
    try:
        if form is Form.TEXT:
            return build_from_text(data, defaults)
        document = read(data)
        return build(document, form_of(document.fields, defaults) if form is None else form, defaults)
    except Refused as refused:
        raise UsageError(f"the line makes no request: {refused.problem.message}") from None


class _Stream(msgspec.Struct):
    stream: bool | None = None


_STREAM = msgspec.json.Decoder(_Stream)


def streams(body: bytes) -> bool:
    """Does the body ask for its answer in pieces, as it comes?"""
    if b'"stream"' not in body:
        return False
    try:
        return lenient.decode(_STREAM, body).stream is True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _parsed(
    line: Line,
    input_format: InputFormat,
    defaults: Defaults,
    max_body_bytes: int,
    endpoint_check: str | None,
    *,
    allow_stream: bool,
) -> ParsedLine:
    if line.too_long:
        raise Refused("line_too_large", f"the line is too large: it has more than {len(line.data):,} bytes")
    custom_id = None
    if input_format is InputFormat.TEXT:
        form = Form.TEXT
        request = build_from_text(line.data, defaults)
    else:
        document = read(line.data)
        custom_id = custom_id_of(document)
        form = form_of(document.fields, defaults)
        request = build(document, form, defaults)
    if endpoint_check is not None and request.path != known_path(endpoint_check):
        raise Refused("url_mismatch", f"the line is for {request.path}, but the batch for {endpoint_check}", "url")
    if len(request.body) > max_body_bytes:
        raise Refused(
            "line_too_large", f"the body has {len(request.body):,} bytes; the limit is {max_body_bytes:,}", "body"
        )
    facts = KINDS[request.kind].check(request.body, allow_stream=allow_stream)
    if isinstance(facts, BodyProblem):
        raise Refused(facts.code, facts.message, facts.param)
    return ParsedLine(
        custom_id,
        request.kind,
        request.path,
        request.model,
        form,
        len(request.body),
        facts.prompt_tokens,
        facts.max_tokens,
    )
