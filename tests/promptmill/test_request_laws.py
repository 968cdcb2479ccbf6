"""Laws of lines and requests, on whatever hypothesis thinks of."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.jsonl import InputFormat
from promptmill.kinds import PATHS
from promptmill.request import Defaults, Form, ParsedLine, render
from promptmill.request.members import last_value, members, without
from tests.promptmill.line_forms import FORMS
from tests.promptmill.request_lines import MODEL, PIECES, PLAIN, good, parsed

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=[])) | st.text()  # with lone surrogates
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
SPACES = st.text(" \t\r\n", max_size=2)


@st.composite
def objects(draw, required: dict[str, Any], *, optional: tuple[str, ...] = ()) -> bytes:
    """A JSON object with these members and others, in any order, spaced and escaped in any way."""
    values = draw(st.dictionaries(TEXTS.map(lambda name: "x" + name), VALUES, max_size=3)) | required
    for name in optional:
        if draw(st.booleans()):
            values[name] = draw(VALUES)
    written = []
    for name, value in draw(st.permutations(sorted(values.items(), key=repr))):
        if isinstance(value, bytes):
            text = value.decode()
        else:
            text = json.dumps(value, ensure_ascii=draw(st.booleans()))
            try:
                text.encode()
            except UnicodeEncodeError:
                text = json.dumps(value)
        written.append(f"{draw(SPACES)}{json.dumps(name)}{draw(SPACES)}:{draw(SPACES)}{text}{draw(SPACES)}")
    return ("{" + ",".join(written) + "}").encode()


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda name: name.isprintable() and "\ufffd" not in name
)
CUSTOM_IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXTS, "content": st.none() | TEXTS}), min_size=1, max_size=3)


@given(st.data())
def test_an_envelopes_body_is_sent_byte_for_byte(data):
    model, custom_id = data.draw(NAMES), data.draw(CUSTOM_IDS)
    body = data.draw(objects({"model": model, "messages": data.draw(MESSAGES)}))
    url = data.draw(st.sampled_from([{}, {"url": "/v1/chat/completions"}]))
    line = data.draw(objects({"custom_id": custom_id, "body": body, **url})) + b"\n"
    found, request = good(line)
    assert (found.custom_id, found.model, found.form) == (custom_id, model, Form.ENVELOPE)
    assert request.body == body


@given(st.data())
def test_a_bare_body_is_sent_byte_for_byte(data):
    body = data.draw(objects({"model": data.draw(NAMES), "messages": data.draw(MESSAGES)}))
    found, request = good(b"\n " + body + b" \r\n\n")
    assert found.form is Form.BARE
    assert request.body == body


@given(st.data())
def test_only_the_custom_id_is_taken_out_and_only_the_model_put_in(data):
    required = {"custom_id": data.draw(CUSTOM_IDS), "messages": data.draw(MESSAGES)}
    line = data.draw(objects(required))
    _, request = good(line)
    kept = [pair for pair in json.loads(line, object_pairs_hook=list) if pair[0] != "custom_id"]
    assert json.loads(request.body, object_pairs_hook=list) == [("model", "default/model"), *kept]


@given(st.data())
def test_a_prompt_is_sent_as_it_was_written(data):
    line = data.draw(objects({"prompt": data.draw(TEXTS)}))
    found, request = good(line, Defaults("m", None, {"top_p": 0.5}))
    assert found.form is Form.PROMPT
    rest = json.loads(line)
    prompt = rest.pop("prompt")
    messages = [{"role": "user", "content": prompt}]
    assert json.loads(request.body) == {"model": "m", "messages": messages, **rest, "top_p": 0.5}


@given(objects({}, optional=("a", "b")))
def test_members_stand_where_they_are_said_to_stand(written):
    text = written.decode()
    assert {m.name: json.loads(text[m.value : m.end]) for m in members(text)} == json.loads(text)
    for member in members(text):
        assert json.loads("{" + text[member.start : member.end] + "}") == {member.name: json.loads(text)[member.name]}
        assert json.loads(last_value(text, member.name)) == json.loads(text)[member.name]
    assert json.loads(without(written, {"a", "b"})) == {
        name: value for name, value in json.loads(text).items() if name not in {"a", "b"}
    }
    with pytest.raises(LookupError):
        last_value(text, "no such name")


@pytest.mark.parametrize(
    ("body", "names", "rest"),
    [
        (b"{}", {"a"}, b"{}"),
        (b'{"a":1}', {"a"}, b"{}"),
        (b' { "a" : 1 } ', {"a"}, b" {  } "),
        (b'{"a":1, "b":2}', {"a"}, b'{"b":2}'),
        (b'{"b":2 , "a":1 }', {"a"}, b'{"b":2 }'),
        (b'{"b":2, "a":1, "c":[{"a": "a"}]}', {"a"}, b'{"b":2, "c":[{"a": "a"}]}'),
        (b'{"a":1, "b":2, "a":3}', {"a"}, b'{"b":2}'),
        (b'{"a":1, "b":2, "c":3}', {"a", "c"}, b'{"b":2}'),
        (b'{"a":true,"b":null,"c":-1.5E+3}', {"b"}, b'{"a":true,"c":-1.5E+3}'),
        (rb'{"\u0061":"}\",{", "b":2}', {"a"}, b'{"b":2}'),
        (b'{"custom_id": "x" , "b":2}', {"custom_id"}, b'{"b":2}'),
        (b'{"custom_id": "x", "b":2, "custom_id": "y"}', {"custom_id"}, b'{"b":2}'),
        (b'{"custom_id": "x", "b":{"custom_id": "y"}}', {"custom_id"}, b'{"b":{"custom_id": "y"}}'),
        (rb'{"custom_id": "x", "b":2, "custom\u005Fid": "y"}', {"custom_id"}, b'{"b":2}'),
    ],
)
def test_members_are_taken_out(body, names, rest):
    assert without(body, names) == rest


@given(st.binary() | PIECES, st.sampled_from(InputFormat), st.sampled_from([PLAIN, MODEL, Defaults("m", "/v1/rerank")]))
def test_no_bytes_make_parsing_raise(line, input_format, defaults):
    found = parsed(line, defaults, input_format=input_format)
    if isinstance(found, ParsedLine):
        render(line, found.form, defaults)


FIELDS = ("custom_id", "method", "url", "body", "model", "messages", "prompt", "query", "documents", "input", "voice")


@given(st.data(), st.sampled_from([None, *PATHS]))
def test_no_object_makes_parsing_raise_and_what_is_accepted_is_rendered(data, endpoint):
    line = data.draw(objects({}, optional=(*FIELDS, "file", "stream", "n")))
    defaults = Defaults("m", endpoint, {"temperature": 1})
    found = parsed(line, defaults)
    if isinstance(found, ParsedLine):
        good(line, defaults)


@given(st.data())
def test_damage_to_a_good_line_is_never_an_exception(data):
    line = bytearray(data.draw(st.sampled_from([line for line, *_ in FORMS if len(line) < 1_000])))
    for place in data.draw(st.lists(st.integers(0, len(line) - 1), min_size=1, max_size=3)):
        line[place] = data.draw(st.integers(0, 255))
    found = parsed(bytes(line))
    if isinstance(found, ParsedLine):
        good(bytes(line))
