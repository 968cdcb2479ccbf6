"""Each kind's entry, held to tables: what it takes, what it refuses and why, and what it reads out of an answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.errors import UsageError
from promptmill.kinds import (
    KINDS,
    PATHS,
    BodyFacts,
    BodyProblem,
    kind_of_path,
    known_path,
    lenient,
    multipart_fields,
)
from promptmill.kinds.tokens import MEDIA_TOKENS, TOKEN, text_weight, tokens
from promptmill.outcome import Usage

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
GOOD: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "completions": {"model": "m", "prompt": "Once"},
    "embeddings": {"model": "m", "input": "text"},
    "rerank": {"model": "m", "query": "q", "documents": ["a", "b"]},
    "images": {"model": "m", "prompt": "a cat"},
    "speech": {"model": "m", "input": "Hello", "voice": "alloy"},
    "transcriptions": {"model": "m", "file": "talk.mp3"},
}
ANSWERS: dict[str, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"role": "assistant", "content": "Hi"}}]},
    "completions": {"choices": [{"text": "upon a time"}]},
    "embeddings": {"data": [{"embedding": [0.1, 0.2], "index": 0}]},
    "rerank": {"results": [{"index": 0, "relevance_score": 0.9}]},
    "images": {"data": [{"url": "https://example.com/cat.png"}]},
    "transcriptions": {"text": "Hello"},
}
NESTED = b"[" * 100_000 + b"]" * 100_000


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def facts(kind: str, body: dict[str, Any] | bytes, **options: bool) -> BodyFacts:
    found = KINDS[kind].check(body if isinstance(body, bytes) else dumps(body), **options)
    assert isinstance(found, BodyFacts), found
    return found


def problem(kind: str, body: dict[str, Any] | bytes) -> BodyProblem:
    found = KINDS[kind].check(body if isinstance(body, bytes) else dumps(body))
    assert isinstance(found, BodyProblem), found
    return found


@pytest.mark.parametrize(
    ("path", "kind", "plain"),
    [
        ("/v1/chat/completions", "chat", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "chat", "/v1/chat/completions"),
        ("/chat/completions", "chat", "/v1/chat/completions"),
        ("chat/completions/", "chat", "/v1/chat/completions"),
        ("/v1/chat/completions/", "chat", "/v1/chat/completions"),
        ("/v1/completions", "completions", "/v1/completions"),
        ("/v1/embeddings", "embeddings", "/v1/embeddings"),
        ("/rerank", "rerank", "/v1/rerank"),
        ("/v1/images/generations", "images", "/v1/images/generations"),
        ("/v1/audio/speech", "speech", "/v1/audio/speech"),
        ("/v1/audio/generations", "speech", "/v1/audio/generations"),
        ("/v1/v1/audio/transcriptions", "transcriptions", "/v1/audio/transcriptions"),
        ("/v1/audio/translations", "transcriptions", "/v1/audio/translations"),
        ("/v1/responses", None, None),
        ("/v2/chat/completions", None, None),
        ("https://api.example.com/v1/rerank", None, None),
        ("/v1", None, None),
        ("/", None, None),
        ("", None, None),
    ],
)
def test_paths_are_known_however_they_are_written(path, kind, plain):
    found = kind_of_path(path)
    assert (found.name if found else None) == kind
    assert known_path(path) == plain


def test_every_kind_has_a_good_body_and_the_table_is_whole():
    assert list(KINDS) == list(GOOD)
    assert {path for kind in KINDS.values() for path in kind.paths} == set(PATHS)
    assert all(kind.path == kind.paths[0] for kind in KINDS.values())
    assert [name for name, kind in KINDS.items() if kind.sends == "multipart"] == ["transcriptions"]


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_body_has_facts(kind):
    found = facts(kind, GOOD[kind])
    assert found.model == "m"
    assert found.prompt_tokens >= 1
    assert found.max_tokens is None
    assert not found.expects_json


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("model", [{}, {"model": None}])
def test_a_missing_model_is_for_others_to_judge(kind, model):
    body = {name: value for name, value in GOOD[kind].items() if name != "model"} | model
    assert facts(kind, body).model is None


@pytest.mark.parametrize("kind", GOOD)
def test_unknown_fields_are_the_upstreams_business(kind):
    facts(kind, GOOD[kind] | {"a_field_of_next_year": {"x": [1, 2.5, None]}, "temperature": "hot"})


@pytest.mark.parametrize(
    ("kind", "fields", "code", "param"),
    [
        ("chat", {"messages": None}, "missing_required_parameter", "messages"),
        ("chat", {"messages": []}, "invalid_request", "messages"),
        ("chat", {"messages": "Hi"}, "invalid_request", "messages"),
        ("chat", {"messages": {"role": "user"}}, "invalid_request", "messages"),
        ("chat", {"messages": ["Hi"]}, "invalid_request", "messages[0]"),
        ("chat", {"messages": [{"content": "Hi"}]}, "missing_required_parameter", "messages[0].role"),
        ("chat", {"messages": [{"role": 1}]}, "invalid_request", "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": 5}]}, "invalid_request", "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "content": [5]}]}, "invalid_request", "messages[0].content[0]"),
        ("completions", {"prompt": None}, "missing_required_parameter", "prompt"),
        ("completions", {"prompt": []}, "invalid_request", "prompt"),
        ("completions", {"prompt": [1.5]}, "invalid_request", "prompt[0]"),
        ("completions", {"prompt": {}}, "invalid_request", "prompt"),
        ("embeddings", {"input": None}, "missing_required_parameter", "input"),
        ("embeddings", {"input": []}, "invalid_request", "input"),
        ("embeddings", {"input": 7}, "invalid_request", "input"),
        ("rerank", {"query": None}, "missing_required_parameter", "query"),
        ("rerank", {"query": ["q"]}, "invalid_request", "query"),
        ("rerank", {"documents": None}, "missing_required_parameter", "documents"),
        ("rerank", {"documents": []}, "invalid_request", "documents"),
        ("rerank", {"documents": "a"}, "invalid_request", "documents"),
        ("rerank", {"documents": [1]}, "invalid_request", "documents[0]"),
        ("images", {"prompt": None}, "missing_required_parameter", "prompt"),
        ("images", {"prompt": ["a"]}, "invalid_request", "prompt"),
        ("speech", {"input": None}, "missing_required_parameter", "input"),
        ("speech", {"input": ["a"]}, "invalid_request", "input"),
        ("speech", {"voice": None}, "missing_required_parameter", "voice"),
        ("speech", {"voice": 3}, "invalid_request", "voice"),
        ("transcriptions", {"file": None}, "missing_required_parameter", "file"),
        ("transcriptions", {"file": ""}, "invalid_request", "file"),
        ("transcriptions", {"file": {"name": "x"}}, "invalid_request", "file"),
        ("chat", {"model": ""}, "invalid_request", "model"),
        ("chat", {"model": 4}, "invalid_request", "model"),
        ("chat", {"model": "a\0b"}, "invalid_request", "model"),
        ("chat", {"model": "a\ud800"}, "invalid_request", "model"),
        ("chat", {"model": "m" * 513}, "invalid_request", "model"),
        ("chat", {"stream": True}, "stream_not_supported", "stream"),
        ("chat", {"stream": "true"}, "invalid_request", "stream"),
        ("speech", {"stream": True}, "stream_not_supported", "stream"),
        ("chat", {"n": 0}, "invalid_request", "n"),
        ("images", {"n": -1}, "invalid_request", "n"),
    ],
)
def test_what_is_certain_to_fail_is_refused(kind, fields, code, param):
    found = problem(kind, GOOD[kind] | fields)
    assert (found.code, found.param) == (code, param)
    assert param in found.message
    assert "`" not in found.message, "msgspec's words, not ours"


@pytest.mark.parametrize("kind", GOOD)
def test_a_missing_field_is_named(kind):
    required = [name for name in GOOD[kind] if name != "model"]
    for name in required:
        found = problem(kind, {key: value for key, value in GOOD[kind].items() if key != name})
        assert found == BodyProblem("missing_required_parameter", f"{name} is missing", name)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chat", {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]}),
        ("chat", {"messages": [{"role": "tool", "tool_call_id": "x"}]}),
        ("chat", {"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "hologram", "hologram": {"x": 1e300}}]}]}),
        ("chat", {"n": None, "max_tokens": None, "stream": None}),
        ("chat", {"stream": False}),
        ("chat", {"max_tokens": "100", "n": "2"}),  # some servers take these
        ("completions", {"prompt": ""}),
        ("completions", {"prompt": ["a", "b"]}),
        ("completions", {"prompt": [1, 2, 3]}),
        ("completions", {"prompt": [[1, 2], [3]]}),
        ("embeddings", {"input": [{"image": "data:image/png;base64,AAAA"}, "text"]}),
        ("rerank", {"documents": [{"title": "a", "body": "b"}]}),
        ("speech", {"voice": {"id": "voice_1"}}),
        ("transcriptions", {"prompt": "names: Ada"}),
    ],
)
def test_what_may_succeed_is_let_through(kind, fields):
    facts(kind, GOOD[kind] | fields)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"messages": [}', "not JSON"),
        (b"[]", "object"),
        (b"null", "null"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "UTF-8"),
        (b'{"messages": [{"role": "user", "content": [{"x": ' + NESTED + b"}]}]}", "deep"),
    ],
)
def test_a_body_that_is_no_object_is_a_problem_and_not_an_exception(body, word):
    assert word in problem("chat", body).message


def test_streams_pass_where_the_caller_hands_them_on():
    assert facts("chat", CHAT | {"stream": True}, allow_stream=True).model == "m"
    message = problem("chat", CHAT | {"stream": True}).message
    assert "kept whole" in message
    assert "remove stream" in message


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_completion_tokens": 50, "max_tokens": 100}, 50),
        ({"max_completion_tokens": 50, "n": None}, 50),
        ({"max_tokens": 100.0}, 100),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": -1}, None),
        ({"max_tokens": "100"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 10**30}, 2**31 - 1),
        ({"n": 4}, None),
    ],
)
def test_what_the_answer_may_have(fields, most):
    assert facts("chat", CHAT | fields).max_tokens == most


@pytest.mark.parametrize(
    ("response_format", "expects"),
    [
        ({"type": "json_object"}, True),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, True),
        ({"type": "text"}, False),
        ({"type": ["json_object"]}, False),
        ({}, False),
        ("json_object", False),
        (None, False),
    ],
)
def test_json_modes_are_seen(response_format, expects):
    assert facts("chat", CHAT | {"response_format": response_format}).expects_json is expects


LONG = 24_000


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 1),
        ("word " * 4_800, 6_000, 6_000),  # 4 characters a token
        ("世" * LONG, 16_000, 16_000),  # 1.5
        ("ж" * LONG, 10_000, 12_000),  # about 2.2
        ("é" + "e" * LONG, 6_000, 6_010),  # one accent changes little
        ("🙂" * LONG, 20_000, 24_000),
        ("data:image/png;base64," + "A" * LONG, MEDIA_TOKENS, MEDIA_TOKENS),
        ("data:audio/wav;codecs=1;base64," + "A" * LONG, MEDIA_TOKENS, MEDIA_TOKENS),
        ("see data:image/png;base64," + "A" * LONG, 6_000, 6_010),  # inside a text it is text
    ],
)
def test_the_estimate_of_texts(text, low, high):
    assert low <= text_weight(text) / TOKEN <= high


@given(st.text())
def test_an_estimate_is_never_nothing_and_never_above_a_token_a_byte(text):
    assert 1 <= tokens(text_weight(text)) <= max(MEDIA_TOKENS, len(text.encode(errors="surrogatepass")), 1)


@pytest.mark.parametrize(
    ("kind", "fields", "low", "high"),
    [
        ("chat", {"messages": [{"role": "user", "content": "word " * 400}]}, 500, 510),
        ("chat", {"messages": [{"role": "user", "content": None}] * 10}, 40, 40),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "word " * 400}]}]}, 500, 510),
        (
            "chat",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}},
                            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
                            {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}},
                        ],
                    }
                ]
            },
            3_000,
            3_010,
        ),
        ("chat", {"tools": [{"type": "function", "function": {"description": "word " * 400}}]}, 500, 530),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "word " * 400}}]}]},
            500,
            520,
        ),
        ("completions", {"prompt": ["word " * 400] * 2}, 1_000, 1_000),
        ("completions", {"prompt": list(range(77))}, 77, 77),
        ("completions", {"prompt": [[1, 2, 3], [4]]}, 4, 4),
        ("completions", {"prompt": ""}, 1, 1),
        ("embeddings", {"input": ["word " * 400] * 3}, 1_500, 1_500),
        ("embeddings", {"input": [{"image": "data:image/png;base64," + "A" * 9_000}]}, 1_000, 1_000),
        ("rerank", {"query": "word " * 40, "documents": ["word " * 400, {"text": "word " * 400}]}, 1_100, 1_110),
        ("images", {"prompt": "word " * 40}, 50, 50),
        ("speech", {"input": "word " * 40}, 50, 50),
        ("transcriptions", {"file": "talk.mp3"}, 1_000, 1_000),
        ("transcriptions", {"file": "data:audio/wav;base64," + "A" * 9_000}, 1_000, 1_000),
    ],
)
def test_the_estimate_of_bodies(kind, fields, low, high):
    assert low <= facts(kind, GOOD[kind] | fields).prompt_tokens <= high


def test_escapes_do_not_make_a_prompt_longer():
    text = "世界 \n " * 500
    plain = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
    escaped = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=True).encode()
    assert facts("chat", plain) == facts("chat", escaped)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"messages": [{"role": "user", "content": "cut \ud83d"}]}',
        rb'{"messages": [{"role": "user", "content": "cut \ud83d", "tool_calls": []}], "user": "\udc00"}',
        rb'{"messages": [{"role": "user", "content": "\ud83dx\ud83d\ude00\\ud83d"}]}',
        rb'{"messages": [{"role": "user", "content": "NUL \u0000"}], "seed": 123456789012345678901234567890}',
        rb'{"messages": [{"role": "user", "content": "a"}], "messages": [{"role": "user", "content": "b"}]}',
        rb'{"m\u0065ssages": [{"role": "user", "content": "a"}], "x": 1e999}',
    ],
)
def test_whatever_json_allows_is_taken(body):
    facts("chat", body)


@given(st.binary())
def test_check_never_raises(body):
    for kind in KINDS.values():
        assert isinstance(kind.check(body), BodyFacts | BodyProblem)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_check_and_read_never_raise_on_any_json(kind, data):
    names = ["model", "stream", "n", "max_tokens", "response_format", "usage", "error"]
    names += [*GOOD[kind], *ANSWERS.get(kind, {})]
    body = data.draw(st.dictionaries(st.sampled_from(names), JSON_VALUES))
    assert isinstance(KINDS[kind].check(dumps(body)), BodyFacts | BodyProblem)
    reading = KINDS[kind].read(dumps(body))
    assert reading.problem is None or isinstance(reading.problem, str)
    assert reading.usage == KINDS[kind].usage(dumps(body)) or KINDS[kind].answer is None


@given(st.text(alphabet='\\ud83DdeE0"ax', max_size=30))
def test_mending_keeps_length_and_meaning(escapes):
    data = b'"' + escapes.encode() + b'"'
    mended = lenient.mended(data)
    assert len(mended) == len(data)
    try:
        before = json.loads(data)
    except ValueError:
        return
    assert json.loads(mended) == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in before)


# Answers


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_of_the_kind_is_valid(kind):
    reading = KINDS[kind].read(dumps(ANSWERS[kind]))
    assert (reading.problem, reading.is_json, reading.usage) == (None, True, Usage())
    assert KINDS[kind].valid(dumps(ANSWERS[kind])) is None


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("chat", {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [{}]}}]}),
        ("chat", {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
        ("completions", {"choices": [{"text": ""}]}),
        ("completions", {"choices": [{"text": None}]}),
        ("embeddings", {"data": [{"embedding": "AACAPw=="}]}),
        ("rerank", {"results": []}),
        ("transcriptions", {"text": ""}),
        ("chat", ANSWERS["chat"] | {"usage": None, "error": None}),
        ("chat", ANSWERS["chat"] | {"usage": "garbage"}),
        ("chat", ANSWERS["chat"] | {"usage": [1]}),
    ],
)
def test_an_unusual_answer_is_valid(kind, answer):
    assert KINDS[kind].valid(dumps(answer)) is None


@pytest.mark.parametrize(
    ("kind", "answer", "words"),
    [
        ("chat", {}, "choices is missing"),
        ("chat", {"choices": None}, "choices is null"),
        ("chat", {"choices": []}, "choices is empty"),
        ("chat", {"choices": {}}, "choices must be a list, not an object"),
        ("chat", {"choices": [{}]}, "choices[0].message is missing"),
        ("chat", {"choices": [{"message": "Hi"}]}, "choices[0].message must be an object, not a string"),
        ("chat", [], "the answer must be an object, not a list"),
        ("chat", {"error": {"message": "overloaded"}}, "choices is missing; the answer says: overloaded"),
        ("chat", {"error": "overloaded"}, "choices is missing; the answer says: overloaded"),
        ("chat", {"error": "a\0b\ud800"}, "choices is missing; the answer says: a\ufffdb\ufffd"),
        ("chat", {"error": {"code": 5}}, "choices is missing; the answer says: {'code': 5}"),
        ("completions", {"choices": []}, "choices is empty"),
        ("completions", {"choices": [{"message": {}}]}, "choices[0].text is missing"),
        ("embeddings", {"data": []}, "data is empty"),
        ("embeddings", {"data": [[0.1]]}, "data[0] must be an object, not a list"),
        ("rerank", {"data": []}, "results is missing"),
        ("images", {"data": []}, "data is empty"),
        ("transcriptions", {"text": None}, "text is null"),
        ("transcriptions", {}, "text is missing"),
    ],
)
def test_an_answer_of_another_shape_is_told_in_words(kind, answer, words):
    reading = KINDS[kind].read(dumps(answer))
    assert reading.problem == words
    assert reading.is_json


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html><body>502 Bad Gateway</body></html>",
        b'{"choices": [{"message": {"content": "cut o',
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b'{"choices": "wrong", and cut',
        b'{"choices": [{"message": {}}], "x": NaN}',
    ],
)
def test_what_is_not_json_is_said_to_be_not_json(answer):
    reading = KINDS["chat"].read(answer)
    assert not reading.is_json
    assert reading.problem
    assert reading.usage == Usage()


@pytest.mark.parametrize(
    "answer",
    [
        rb'{"choices": [{"message": {"content": "cut \ud83d"}}], "usage": {"prompt_tokens": 3}}',
        rb'{"choices": [{"message": {"content": "NUL \u0000"}}], "usage": {"prompt_tokens": 3}}',
        rb'{"choices": [{"message": {}}], "seed": 1234567890123456789012345, "usage": {"prompt_tokens": 3}}',
        rb'{"choices": [], "choices": [{"message": {}}], "usage": {"prompt_tokens": 9}, "usage": {"prompt_tokens": 3}}',
        rb'{"choices": [{"message": {}}], "usage": {"prompt_tokens": 3, "queue_time": "\udc00"}}',
        rb'{"choices": [{"message": {}, "logprobs": {"x": 1e-999}}], "usage": {"prompt_tokens": 3, "cost": 1e999}}',
    ],
)
def test_answers_are_read_as_leniently_as_json_allows(answer):
    reading = KINDS["chat"].read(answer)
    assert reading.problem is None
    assert reading.usage == Usage(prompt_tokens=3) == KINDS["chat"].usage(answer)


def test_an_answer_nested_too_deeply_is_no_answer():
    assert "deep" in (KINDS["chat"].valid(b'{"x": ' + NESTED + b"}") or "")
    assert KINDS["chat"].usage(b'{"usage": ' + NESTED + b"}") == Usage()


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({}, Usage()),
        (None, Usage()),
        ({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}, Usage(10, 20)),
        ({"input_tokens": 10, "output_tokens": 20}, Usage(10, 20)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "completion_tokens_details": {"reasoning_tokens": 15},
                "prompt_tokens_details": {"cached_tokens": 8},
            },
            Usage(10, 20, 15, 8),
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 15},
                "input_tokens_details": {"cached_tokens": 8},
            },
            Usage(10, 20, 15, 8),
        ),
        ({"prompt_tokens": 10, "completion_tokens_details": None, "prompt_tokens_details": {}}, Usage(10)),
        ({"prompt_tokens": None, "completion_tokens": 20}, Usage(0, 20)),
        ({"prompt_tokens": "10", "completion_tokens": 20}, Usage(0, 20)),
        ({"prompt_tokens": 10.0, "completion_tokens": True}, Usage(10, 0)),
        ({"prompt_tokens": -5, "completion_tokens": 20}, Usage(0, 20)),
        ({"prompt_tokens": 10**30, "completion_tokens": 20}, Usage(0, 20)),
        ({"prompt_tokens": {"a": 1}, "completion_tokens": 20}, Usage(0, 20)),
        ({"prompt_tokens": 10, "completion_tokens_details": "none", "prompt_tokens_details": 5}, Usage(10)),
        ({"prompt_tokens": 10, "completion_tokens_details": {"reasoning_tokens": "7"}}, Usage(10)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4.0}}, Usage(10, 0, 0, 4)),
        ([1, 2], Usage()),
        ("garbage", Usage()),
        (7, Usage()),
    ],
)
def test_usage_is_read_in_all_its_forms_and_garbage_is_nothing(usage, counted):
    answer = dumps(ANSWERS["chat"] | {"usage": usage})
    assert KINDS["chat"].usage(answer) == counted
    assert KINDS["chat"].read(answer).usage == counted


def test_usage_is_read_even_from_an_answer_of_another_shape():
    answer = dumps({"choices": "none", "usage": {"prompt_tokens": 3}})
    assert KINDS["chat"].read(answer).usage == Usage(3)


@given(st.binary())
def test_reading_never_raises(answer):
    for kind in KINDS.values():
        kind.read(answer)
        kind.usage(answer)
        kind.valid(answer)


def test_speech_answers_bytes_but_not_nothing_and_not_an_error():
    speech = KINDS["speech"]
    assert speech.answers_binary(b"whatever")
    assert speech.valid(b"ID3\x04\x00\xff\xfb") is None
    assert speech.valid(b"{\x00\xff raw audio may begin with a brace") is None
    assert speech.valid(b"") == "the answer is empty"
    assert speech.valid(b'{"error": {"message": "no such voice"}}') == "the answer is an error: no such voice"
    assert speech.usage(b'{"usage": {"prompt_tokens": 3}}') == Usage()


@pytest.mark.parametrize(
    ("kind", "fields", "binary"),
    [
        ("chat", {"response_format": "text"}, False),
        ("transcriptions", {}, False),
        ("transcriptions", {"response_format": "json"}, False),
        ("transcriptions", {"response_format": "verbose_json"}, False),
        ("transcriptions", {"response_format": "text"}, True),
        ("transcriptions", {"response_format": "srt"}, True),
        ("transcriptions", {"response_format": "vtt", "prompt": "\ud800"}, True),
        ("transcriptions", {"response_format": ["vtt"]}, False),
        ("transcriptions", {"response_format": None}, False),
    ],
)
def test_which_answers_are_not_json(kind, fields, binary):
    assert KINDS[kind].answers_binary(dumps(GOOD[kind] | fields)) is binary


# Forms


@pytest.mark.parametrize(
    ("body", "fields", "file"),
    [
        ({"model": "m", "file": "talk.mp3"}, [("model", "m")], "talk.mp3"),
        ({"file": "file-abc123", "model": "m"}, [("model", "m")], "file-abc123"),
        ({"file": "data:audio/wav;base64,AAAA"}, [], "data:audio/wav;base64,AAAA"),
        ({"file": "https://a.example/b", "model": "m"}, [("file", "https://a.example/b"), ("model", "m")], None),
        ({"file": "http://example.com/a.mp3"}, [("file", "http://example.com/a.mp3")], None),
        (
            {"timestamp_granularities": ["word", "segment"], "file": "a"},
            [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")],
            "a",
        ),
        ({"diarize": True, "stream": False}, [("diarize", "true"), ("stream", "false")], None),
        ({"temperature": 0, "min_speakers": 2}, [("temperature", "0"), ("min_speakers", "2")], None),
        ({"language": None, "prompt": ""}, [("prompt", "")], None),
        ({"cut": {"type": "vad", "at": [1, 2]}}, [("cut[type]", "vad"), ("cut[at][]", "1"), ("cut[at][]", "2")], None),
        ({"prompt": "Grüße, 世界"}, [("prompt", "Grüße, 世界")], None),
        ({"prompt": "cut \ud83d"}, [("prompt", "cut \ufffd")], None),
        ({"file": None}, [], None),
    ],
)
def test_a_form_has_the_fields_that_the_sdks_send(body, fields, file):
    assert multipart_fields(dumps(body)) == (fields, file)
    assert KINDS["transcriptions"].multipart_fields(dumps(body)) == (fields, file)


def test_a_form_writes_numbers_as_they_were_written():
    assert multipart_fields(b'{"temperature": 0.20, "top": 1E2}') == ([("temperature", "0.20"), ("top", "1E2")], None)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"file": ', b'{"a": "\xff"}', b'{"a": ' + NESTED + b"}"])
def test_what_is_no_object_makes_no_form(body):
    with pytest.raises(UsageError):
        multipart_fields(body)


@given(st.dictionaries(st.text(), JSON_VALUES))
def test_any_object_makes_a_form(body):
    fields, file = multipart_fields(dumps(body))
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in fields)
    assert file is None or isinstance(file, str)
