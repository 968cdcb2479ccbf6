"""From lines to requests: what was checked is what is sent, and what is wrong is told."""

import json
import re
import sys
from pathlib import Path

import pytest

from promptmill.errors import LineError, UsageError
from promptmill.jsonl import InputFormat, Line
from promptmill.kinds import PATHS
from promptmill.request import MAX_DEPTH, Defaults, Form, ParsedLine, parse_line, render
from promptmill.request.document import read
from promptmill.request.forms import form_of
from tests.promptmill.line_forms import FORMS
from tests.promptmill.request_lines import CHAT, MODEL, PLAIN, ROOMY, bad, good, parsed

DOCS = Path(__file__).parents[2] / "docs" / "input.md"


# Defaults


@pytest.mark.parametrize(
    "defaults",
    [
        Defaults(),
        Defaults("m"),
        Defaults("m", "/v1/embeddings"),
        Defaults("m", "rerank/", {"temperature": 0.5, "stop": ["\n"], "x": {"ü": None}}),
    ],
)
def test_defaults_survive_being_stored(defaults):
    again = Defaults.from_json(defaults.to_json())
    assert again == defaults
    assert again.written == defaults.written
    assert json.loads(defaults.to_json()) == {
        name: getattr(defaults, name)
        for name in ("model", "endpoint", "parameters")
        if getattr(defaults, name) is not None
    }
    hash(defaults)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": ""}, "default model"),
        ({"model": "a\0"}, "default model"),
        ({"model": "a\udc80"}, "default model"),
        ({"endpoint": "/v1/responses"}, "/v1/responses.*must be /v1/chat/completions, "),
        ({"parameters": {"temperature": float("nan")}}, "temperature is not JSON"),
        ({"parameters": {"x": object()}}, "x is not JSON"),
        ({"parameters": {"x": "\udc80"}}, "x is not JSON"),
        ({"parameters": {"model": "m"}}, "model cannot be a default parameter"),
        ({"parameters": {"messages": []}}, "messages cannot be a default parameter"),
    ],
)
def test_impossible_defaults_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Defaults(**arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        b"\xff",
        '{"model": 5}',
        '{"made_by": "another version"}',
        '{"parameters": []}',
        '{"endpoint": "/x"}',
    ],
)
def test_what_are_no_defaults_is_refused(text):
    with pytest.raises(UsageError):
        Defaults.from_json(text)


# What lines become


@pytest.mark.parametrize(("line", "defaults", "facts", "body"), FORMS)
def test_a_line_becomes_a_request(line, defaults, facts, body):
    found, request = good(line, defaults)
    assert (found.custom_id, found.form, found.path, found.model) == facts
    assert request.body == body
    assert request.kind == PATHS[request.path].name


@pytest.mark.parametrize(
    ("line", "defaults", "path", "body"),
    [
        (
            b"Why is the sky blue?\n",
            MODEL,
            "/v1/chat/completions",
            {"model": "default/model", "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
        ),
        (
            '\ufeff\n  \n  "Grüße"\\ \t\r\n \n'.encode(),
            Defaults("m", "/chat/completions", {"temperature": 0.5}),
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": '  "Grüße"\\ \t'}], "temperature": 0.5},
        ),
        (
            b'{"prompt": "not read"}',
            MODEL,
            "/v1/chat/completions",
            {"model": "default/model", "messages": [{"role": "user", "content": '{"prompt": "not read"}'}]},
        ),
        (b"a\0b", Defaults("m", "/v1/completions"), "/v1/completions", {"model": "m", "prompt": "a\0b"}),
        (b"a cat", Defaults("m", "images/generations"), "/v1/images/generations", {"model": "m", "prompt": "a cat"}),
        (b"text", Defaults("m", "/v1/embeddings"), "/v1/embeddings", {"model": "m", "input": "text"}),
        (
            b"Hello",
            Defaults("m", "/v1/audio/speech", {"voice": "alloy"}),
            "/v1/audio/speech",
            {"model": "m", "input": "Hello", "voice": "alloy"},
        ),
    ],
)
def test_a_line_of_text_becomes_a_request(line, defaults, path, body):
    found, request = good(line, defaults, input_format=InputFormat.TEXT)
    assert (found.custom_id, found.form, found.path) == (None, Form.TEXT, path)
    assert json.loads(request.body) == body


def test_the_facts_of_a_line_are_those_of_its_body():
    body = {"messages": [{"role": "user", "content": "word " * 400}], "max_tokens": 10, "n": 2}
    found, request = good({"custom_id": "a", "body": body})
    assert (found.kind, found.max_tokens, found.body_bytes) == ("chat", 20, len(request.body))
    assert 500 <= found.prompt_tokens <= 510


CHAT_LINE = json.dumps(CHAT).encode()
DEEP = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)

#: line, code, param, words of the message
WRONG: list[tuple[bytes, str, str | None, str]] = [
    (b"Why is the sky blue?", "invalid_json_line", None, "column 1: expected a value; there is 'Why is the sky blue?'"),
    (b'{"prompt": "Hi"', "invalid_json_line", None, "column 16: expected a comma, or the end of the list or object"),
    (b'{"prompt": "Hi}', "invalid_json_line", None, "column 12: a string begins that has no end"),
    (b'{"prompt" "Hi"}', "invalid_json_line", None, "column 11: expected a colon"),
    (b"{'prompt': 'Hi'}", "invalid_json_line", None, "column 2: expected a field's name in double quotes"),
    (b'{"prompt": "Hi",}', "invalid_json_line", None, "column 1"),
    (b'{"prompt": "a\tb"}', "invalid_json_line", None, "column 14: a control character"),
    (rb'{"prompt": "a\qb"}', "invalid_json_line", None, "column 14: there is no such escape"),
    (rb'{"prompt": "a\u12"}', "invalid_json_line", None, "four hexadecimal digits"),
    (b'{"prompt": "a"}{"prompt": "b"}', "invalid_json_line", None, "column 16: expected the end of the line"),
    (b'{"prompt": "NaN", "x": NaN}', "invalid_json_line", None, "column 24: expected a value; NaN is no number"),
    (b'{"x": [-Infinity], "prompt": ""}', "invalid_json_line", None, "column 8: expected a value; -Infinity is no"),
    (b"[1, 2]", "invalid_json_line", None, "a line must be an object, not a list (one object a line"),
    (b'"text"', "invalid_json_line", None, "a line must be an object, not a string"),
    (b"null", "invalid_json_line", None, "a line is null"),
    (b'\n\n {"prompt": "\xc3\xa4" x}', "invalid_json_line", None, "column 16: expected a comma"),
    (b'{"prompt": ' + b"[" * 300 + b"]" * 300 + b"}", "invalid_json_line", None, "nested more than 256 deep"),
    (b'{"prompt": "a", "x": [' + DEEP + b"]}", "invalid_json_line", None, "nested more than 256 deep"),
    (b"[" * 1_000_000, "invalid_json_line", None, "nested more than 256 deep"),
    (b'{"a":' * 100_000, "invalid_json_line", None, "nested more than 256 deep"),
    (b'{"prompt": "a\xffb"}', "invalid_encoding", None, "byte 0xff at offset 13 of the line"),
    (b'\n{"prompt": "a", "x": "\xe4"}', "invalid_encoding", None, "byte 0xe4 at offset 22 of the line"),
    (b'{"p\x00r\x00', "invalid_json_line", None, "column 4: a control character"),
    (b'{"custom_id": "a"}', "missing_required_parameter", "messages", "not clear what is asked"),
    (b'{"custom_id": "a", "url": "/v1/embeddings"}', "missing_required_parameter", "body", "body is missing"),
    (b'{"custom_id": "a", "body": null}', "missing_required_parameter", "body", "body is missing"),
    (b'{"custom_id": "a", "body": "text"}', "invalid_request", "body", "body must be an object"),
    (b'{"custom_id": "a", "body": {}}', "missing_required_parameter", "messages", "not clear what is asked"),
    (b'{"method": "GET", "body": ' + CHAT_LINE + b"}", "invalid_method", "method", "must be POST, not 'GET'"),
    (b'{"method": 5, "body": ' + CHAT_LINE + b"}", "invalid_method", "method", "method must be a string"),
    (b'{"url": "/v1/responses", "body": {}}', "invalid_url", "url", "'/v1/responses' is not known: it must be /v1/"),
    (b'{"url": "", "body": {}}', "invalid_url", "url", "is not known"),
    (b'{"url": 5, "body": {}}', "invalid_url", "url", "url must be a string, not an integer"),
    (b'{"custom_id": 5, "prompt": "Hi"}', "invalid_custom_id", "custom_id", "custom_id must be a string, not an"),
    (b'{"custom_id": "", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "empty"),
    (b'{"custom_id": "' + b"a" * 513 + b'", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "more than 512"),
    (rb'{"custom_id": "a\u0000", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "NUL"),
    (rb'{"custom_id": "a\ud83d", "prompt": "Hi"}', "invalid_custom_id", "custom_id", "surrogate"),
    (b'{"model": 5, "prompt": "Hi"}', "invalid_request", "model", "model must be a string, not an integer"),
    (b'{"body": {"model": 5, "messages": []}}', "invalid_request", "model", "model must be a string, not an integer"),
    (b'{"model": "", "prompt": "Hi"}', "invalid_request", "model", "empty"),
    (rb'{"model": "m\ud83d", "prompt": "Hi"}', "invalid_request", "model", "cannot be printed"),
    (b'{"messages": []}', "invalid_request", "messages", "messages is empty"),
    (b'{"messages": [{}]}', "missing_required_parameter", "messages[0].role", "messages[0].role is missing"),
    (b'{"query": "q"}', "missing_required_parameter", "documents", "documents is missing"),
    (b'{"prompt": 5}', "invalid_request", "prompt", "prompt must be"),
    (b'{"prompt": "Hi", "stream": true}', "stream_not_supported", "stream", "remove stream"),
    (b'{"body": {"messages": [{"role": "user"}], "stream": true}}', "stream_not_supported", "stream", "remove stream"),
    (b'{"prompt": "Hi", "n": 0}', "invalid_request", "n", "at least 1"),
    (b'{"prompt": "' + b"a" * ROOMY + b'"}', "line_too_large", "body", "the limit is 1,048,576"),
]


@pytest.mark.parametrize(("line", "code", "param", "words"), WRONG)
def test_what_is_wrong_with_a_line_is_told(line, code, param, words):
    found = bad(line)
    assert (found.code, found.param) == (code, param)
    assert words in found.message or (words == "column 1" and re.search(r"column 1\d: ", found.message))
    assert "`" not in found.message.replace("`jq -c .[]`", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": [{"role": "user"}]}', 'add "model" to the body, or name one for all lines'),
        (b'{"messages": [{"role": "user"}], "model": null}', 'add "model" to the body, or name one for all lines'),
        (b'{"body": {"messages": [{"role": "user"}]}}', 'add "model" to the body, or name one for all lines'),
        (b'{"prompt": "Hi"}', "--model"),
    ],
)
def test_a_missing_model_is_told(line, words):
    found = bad(line, PLAIN)
    assert (found.code, found.param) == ("missing_required_parameter", "model")
    assert words in found.message


def test_a_missing_model_of_text_is_told():
    assert "--model" in bad(b"Hi", PLAIN, input_format=InputFormat.TEXT).message


def test_text_that_is_not_utf8_is_told():
    found = bad(b"Gr\xfc\xdfe", input_format=InputFormat.TEXT)
    assert (found.code, found.message.split(" (")[0]) == (
        "invalid_encoding",
        "not UTF-8: byte 0xfc at offset 2 of the line",
    )


def test_a_text_alone_is_no_rerank_job():
    found = bad(b"text", Defaults("m", "/v1/rerank"), input_format=InputFormat.TEXT)
    assert (found.code, "rerank" in found.message) == ("invalid_request", True)


def test_a_line_that_was_too_long_to_hold_is_told():
    found = parse_line(Line(7, b"{" * 1_000, too_long=True), InputFormat.JSON, MODEL, max_body_bytes=ROOMY)
    assert found == LineError(7, "line_too_large", "the line is too large: it has more than 1,000 bytes")


@pytest.mark.parametrize(
    ("line", "check", "code"),
    [
        (b'{"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}', "/v1/embeddings", None),
        (b'{"url": "/embeddings", "body": {"model": "m", "input": "a"}}', "/v1/embeddings/", None),
        (b'{"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}', "/v1/chat/completions", "url_mismatch"),
        (b'{"model": "m", "input": "a", "voice": "b"}', "/v1/audio/generations", "url_mismatch"),
        (b'{"prompt": "Hi"}', "/v1/chat/completions", None),
        (b'{"prompt": "Hi"}', "/v1/completions", "url_mismatch"),
    ],
)
def test_all_lines_of_a_batch_have_its_endpoint(line, check, code):
    found = parsed(line, endpoint_check=check)
    assert getattr(found, "code", None) == code


def test_nesting_up_to_the_limit_is_taken_and_brackets_in_strings_do_not_nest():
    good(b'{"prompt": "a", "x": ' + DEEP + b"}")
    good(json.dumps({"prompt": '\\"[{' * 10_000, "x": [[]] * 1_000}).encode())


def test_a_nearly_full_stack_is_not_an_exception():
    line = b'{"custom_id": "a", "prompt": "b", "x": ' + DEEP + b"}"

    def down(levels: int) -> ParsedLine | LineError:
        return down(levels - 1) if levels else parsed(line)

    for levels in range(0, sys.getrecursionlimit() - 150, 25):
        assert isinstance(down(levels), ParsedLine | LineError)


def test_a_hostile_line_takes_no_long_time():
    assert isinstance(bad(b"[" * 300 + b'"' + rb"\"" * 2_000_000), LineError)


@pytest.mark.parametrize(
    ("data", "form"),
    [(b"{", Form.BARE), (b'{"prompt": "Hi"}', Form.PROMPT), (b"\xff", Form.TEXT), (b"{}", Form.ENVELOPE)],
)
def test_rendering_what_was_not_accepted_is_a_usage_error(data, form):
    with pytest.raises(UsageError, match="the line makes no request"):
        render(data, form, PLAIN)


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [], "stream": true}}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true}',
        b'{"prompt": "Hi", "custom_id": "a"}',
    ],
)
def test_a_form_that_was_not_settled_is_found_when_it_is_needed(line):
    defaults = Defaults(model="m")
    form = form_of(read(line).fields, defaults)
    assert render(line, None, defaults) == render(line, form, defaults)


def test_a_line_of_no_known_form_is_a_usage_error_too():
    with pytest.raises(UsageError, match="the line makes no request"):
        render(b"Hi", None, PLAIN)


# The page for users


def test_the_examples_of_the_page_are_what_the_page_says():
    text = DOCS.read_text()
    examples = re.findall(r"<!-- (\w+) -->\n```\w*\n(.*?)```", text, re.DOTALL)
    assert {form for form, _ in examples} == {form.value for form in Form}
    for form, block in examples:
        input_format = InputFormat.TEXT if form == "text" else InputFormat.JSON
        for line in block.splitlines():
            found, _ = good(line.encode(), input_format=input_format)
            assert found.form == form, line


def test_the_page_has_every_code_and_every_path():
    text = DOCS.read_text()
    codes = {code for _, code, _, _ in WRONG} | {"url_mismatch", "duplicate_custom_id"}
    assert [code for code in sorted(codes) if f"`{code}`" not in text] == []
    assert [path for path in PATHS if f"`{path}`" not in text] == []
