"""A table of answers as upstreams give them, and what each of them is."""

import json
from email.utils import formatdate

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.outcome import LANE_FAULTS, Answer, Failure, Outcome, Reason, Usage
from worker.judge import MAX_KEPT_BYTES, Expectation, judge
from worker.retry_after import retry_after_seconds
from worker.upstream import Reply

NOW = 1_700_000_000.0
GOOD = b'{"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'


class _Choices(msgspec.Struct):
    choices: list[dict[str, object]] = []


def valid(body: bytes) -> str | None:
    """As a kind would check it: with msgspec, and strictly."""
    try:
        return None if msgspec.json.decode(body, type=_Choices).choices else "no choices"
    except msgspec.ValidationError:
        return "not an object"


def usage(body: bytes) -> Usage:
    counts = msgspec.json.decode(body).get("usage") or {}
    return Usage(counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0))


JSON = Expectation(json=True, valid=valid, usage=usage)
BINARY = Expectation(json=False, valid=lambda _: None, usage=lambda _: Usage())


def reply(status: int, body: bytes | str | dict[str, object] = b"", **headers: str) -> Reply:
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    elif isinstance(body, str):
        body = body.encode()
    return Reply(status, httpx.Headers({name.replace("_", "-"): each for name, each in headers.items()}), body, 0.1)


def failure(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


def test_a_good_answer_is_kept_as_it_came():
    headers = {"content_type": "application/json; charset=utf-8", "x_request_id": "req_1"}
    outcome = judge(reply(200, GOOD, **headers), expects=JSON, now=NOW)
    assert outcome == Answer(200, "application/json; charset=utf-8", GOOD, Usage(3, 4), "req_1")


def test_a_failure_of_the_connection_passes_through():
    lost = Failure(Reason.CONNECTION_RESET, "gone")
    assert judge(lost, expects=JSON, now=NOW) is lost


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"text": "\\ud800 half a pair"}]}',
        b'{"choices": [{"text": "NUL \\u0000 and \x00 and \x1b[0m"}]}',
        b'{"choices": [{"logprob": NaN, "other": -Infinity}]}',
        b'\xef\xbb\xbf{"choices": [1, {}]}'.replace(b"1, ", b""),
        b'{"choices": [{}], "big": 123456789012345678901234567890, "tiny": 1e-9999}',
        b' \n\n  {"choices": [{}]}\n',
        '{"choices": [{"text": "Grüße 🎉"}]}'.encode(),
    ],
)
def test_odd_json_from_a_real_upstream_does_not_fail_the_job(body):
    outcome = judge(reply(200, body), expects=JSON, now=NOW)
    assert isinstance(outcome, Answer), outcome
    assert outcome.body == body


@pytest.mark.parametrize(
    ("body", "reason", "says"),
    [
        (b"", Reason.BODY_INVALID, "the answer is empty"),
        (b"  \n", Reason.BODY_INVALID, "the answer is empty"),
        (b"{}", Reason.BODY_INVALID, "no choices"),
        (b"[]", Reason.BODY_INVALID, "not an object"),
        (b"null", Reason.BODY_INVALID, "not an object"),
        (GOOD[:-1], Reason.BODY_NOT_JSON, 'it begins: {"choices"'),
        (GOOD + b"x", Reason.BODY_NOT_JSON, "not JSON"),
        (b"upstream\x00 connect\r\nerror", Reason.BODY_NOT_JSON, "it begins: upstream connect error"),
        (b"\xff\xfe", Reason.BODY_NOT_JSON, "not JSON"),
        (b"[" * 100_000, Reason.BODY_NOT_JSON, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, Reason.BODY_NOT_JSON, "nested too deeply"),
        (b"[1, 2", Reason.BODY_NOT_JSON, "not JSON"),
        (b"<html><title>Just a moment...</title>", Reason.BODY_HTML, "an HTML page: Just a moment..."),
        (b"\n<!DOCTYPE html><h1 class=x>Sign in</h1>", Reason.BODY_HTML, "an HTML page: Sign in; is there a proxy"),
        (b"<!doctype html>", Reason.BODY_HTML, "an HTML page"),
    ],
)
def test_answers_of_no_use(body, reason, says):
    outcome = failure(judge(reply(200, body), expects=JSON, now=NOW))
    assert outcome.reason is reason
    assert says in outcome.message
    assert outcome.status == 200


def test_what_is_binary_is_not_read():
    for body in (b"\xff\xfb\x90", b"{", b"plain text", b'{"error": "is what she said"}'):
        assert isinstance(judge(reply(200, body, content_type="audio/mpeg"), expects=BINARY, now=NOW), Answer)
    empty = judge(reply(200, b"", content_type="audio/mpeg"), expects=BINARY, now=NOW)
    assert failure(empty).reason is Reason.BODY_INVALID
    page = judge(reply(200, b"<p>", content_type="text/html"), expects=BINARY, now=NOW)
    assert failure(page).reason is Reason.BODY_HTML


def openai(message: str, kind: str | None = None, code: object = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


TOO_LONG = "This model's maximum context length is 4097 tokens. However, you requested 5000 tokens."
TOGETHER_DEDICATED = (
    "Unable to access non-serverless model MiniMaxAI/MiniMax-M1-40k. Please visit https://api.together.ai/models "
    "to create and start a dedicated endpoint for the model."
)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, openai("bad", "invalid_request_error"), Reason.REJECTED),
        (401, openai("Invalid API key", "authentication_error"), Reason.UNAUTHORIZED),
        (402, openai("Credit limit exceeded"), Reason.PAYMENT_REQUIRED),
        (403, openai("Input is too long for this model"), Reason.FORBIDDEN),
        (404, openai("The model `x` does not exist", code="model_not_found"), Reason.NOT_AVAILABLE),
        (405, "", Reason.REJECTED),
        (407, "", Reason.CONNECTION_FAILED),
        (408, "", Reason.SERVER_ERROR),
        (409, "", Reason.SERVER_ERROR),
        (413, "<html><title>413 Too Large</title>", Reason.REJECTED),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, Reason.REJECTED),
        (425, "", Reason.SERVER_ERROR),
        (429, openai("slow down", "dynamic_request_limited"), Reason.RATE_LIMITED),
        (429, openai("You exceeded your current quota", "insufficient_quota"), Reason.PAYMENT_REQUIRED),
        (429, openai("You exceeded your current quota", code="insufficient_quota"), Reason.PAYMENT_REQUIRED),
        (500, openai("oops", "server_error"), Reason.SERVER_ERROR),
        (502, "<html><h1>502 Bad Gateway</h1></html>", Reason.SERVER_ERROR),
        (503, openai("overloaded"), Reason.OVERLOADED),
        (504, "", Reason.SERVER_ERROR),
        (520, "", Reason.SERVER_ERROR),
        (529, "", Reason.SERVER_ERROR),
        (304, "", Reason.PROTOCOL_ERROR),
        # Models that are not there, whatever the status says.
        (400, openai("x", code="model_not_available"), Reason.NOT_AVAILABLE),
        (400, openai("x", "model_not_supported"), Reason.NOT_AVAILABLE),
        (400, openai("The model `gpt-9` does not exist or you do not have access to it."), Reason.NOT_AVAILABLE),
        (400, openai("Unable to access model foo/bar. Please visit https://..."), Reason.NOT_AVAILABLE),
        (400, openai(TOGETHER_DEDICATED, "invalid_request_error"), Reason.NOT_AVAILABLE),
        (400, openai("The model MiniMaxAI/MiniMax-M1-40k is not currently supported."), Reason.NOT_AVAILABLE),
        (422, {"error": "Model 'x' not found"}, Reason.NOT_AVAILABLE),
        (400, {"message": "no such model: x"}, Reason.NOT_AVAILABLE),
        # Requests that speak of the model and are wrong themselves.
        (400, openai(TOO_LONG, "invalid_request_error", "context_length_exceeded"), Reason.REJECTED),
        (400, openai(f"The model is not available for this input: {TOO_LONG}"), Reason.REJECTED),
        (400, openai("`tools` is not currently supported"), Reason.REJECTED),
        (400, openai("This model does not support image inputs"), Reason.REJECTED),
        (400, openai("max_tokens must be at most 40000 for this model"), Reason.REJECTED),
        # 200, and still no.
        (200, openai("boom", "server_error"), Reason.SERVER_ERROR),
        (200, {"error": "boom"}, Reason.SERVER_ERROR),
        (200, {"error": {}, "choices": [{}]}, None),
        (200, {"error": None, "choices": [{}]}, None),
        (200, openai("no", "invalid_request_error"), Reason.REJECTED),
        (200, openai("no", "BadRequestError", 400), Reason.REJECTED),
        (200, openai(TOO_LONG), Reason.REJECTED),
        (200, openai("slow", code=429), Reason.RATE_LIMITED),
        (200, openai("slow", code="429"), Reason.RATE_LIMITED),
        (200, openai("slow", "rate_limit_exceeded"), Reason.RATE_LIMITED),
        (200, openai("Provider returned error", code=502), Reason.SERVER_ERROR),
        (200, openai("x", "overloaded_error"), Reason.OVERLOADED),
        (200, openai("x", "authentication_error"), Reason.UNAUTHORIZED),
        (200, openai("x", "insufficient_quota"), Reason.PAYMENT_REQUIRED),
        (200, openai("x", code="model_not_found"), Reason.NOT_AVAILABLE),
        (200, b'{"error": {"message": "\\ud800"}}', Reason.SERVER_ERROR),
    ],
)
def test_refusals(status, body, reason):
    outcome = judge(reply(status, body), expects=JSON, now=NOW)
    assert (outcome.reason if isinstance(outcome, Failure) else None) is reason
    assert outcome.status == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (openai("Rate limit\nreached"), "Rate limit reached"),
        ({"error": "plain"}, "plain"),
        ({"error": {"error": "inner"}}, "inner"),
        ({"message": "top"}, "top"),
        ({"detail": "Not authenticated"}, "Not authenticated"),
        ({"detail": [{"loc": ["body", 0], "msg": "required"}, {"msg": "too"}]}, "body.0: required; too"),
        ({"errors": [{"code": 1, "message": "first"}, "second"]}, "first; second"),
        ({"error": {"message": {"a": 1}}}, '{"a": 1}'),
        ('"just text"', "just text"),
        ("no such route\x07", "no such route"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        ("<html><head><title>502 Bad\nGateway</title>", "an HTML page: 502 Bad Gateway"),
        ("<html>", "an HTML page"),
        ("", "HTTP 400 Bad Request, without an explanation"),
        ("{}", "HTTP 400 Bad Request, without an explanation"),
        ({"error": {"message": None}}, "HTTP 400 Bad Request, without an explanation"),
    ],
)
def test_the_message_is_the_upstream_s_own(body, message):
    assert failure(judge(reply(400, body), expects=JSON, now=NOW)).message == message


def test_long_words_are_cut():
    assert len(failure(judge(reply(500, "x" * 9000), expects=JSON, now=NOW)).message) == 300
    outcome = failure(judge(reply(500, openai("y" * 90_000)), expects=JSON, now=NOW))
    assert len(outcome.message) == 1000
    assert len(outcome.body) == MAX_KEPT_BYTES
    assert len(failure(judge(reply(500, openai("y" * 3_000_000)), expects=JSON, now=NOW)).message) == 300


def test_a_status_without_a_name():
    assert failure(judge(reply(599), expects=JSON, now=NOW)).message == "HTTP 599, without an explanation"


def test_a_refusal_keeps_what_helps_to_follow_it_up():
    outcome = failure(
        judge(reply(500, {"error": "x"}, content_type="application/json", cf_ray="r"), expects=JSON, now=NOW)
    )
    assert outcome == Failure(Reason.SERVER_ERROR, "x", 500, "application/json", b'{"error": "x"}', None, "r")


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, None),
        (429, {"Retry-After": "7"}, 7.0),
        (500, {"Retry-After": "7"}, 7.0),
        (429, {"Retry-After": "1.5"}, 1.5),
        (429, {"Retry-After": "-3"}, 0.0),
        (429, {"Retry-After": "86400"}, 3600.0),
        (429, {"Retry-After": "inf"}, 3600.0),
        (429, {"Retry-After": "nan"}, None),
        (429, {"Retry-After": "soon"}, None),
        (429, {"Retry-After": formatdate(NOW + 90, usegmt=True)}, 90.0),
        (429, {"Retry-After": formatdate(NOW - 90, usegmt=True)}, 0.0),
        (429, {"Retry-After": "Wed, 99 Nov 2023 99:99:99 GMT"}, None),
        (429, {"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        (429, {"retry-after-ms": "x", "Retry-After": "7"}, 7.0),
        (429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        (429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        (429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
        (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s"}, 3600.0),
        (429, {"x-ratelimit-remaining-requests": "12", "x-ratelimit-reset-requests": "6m0s"}, None),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0.4"}, 0.4),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW + 5)}, 5.0),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str((NOW + 5) * 1000)}, 5.0),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "6x"}, None),
        (429, {"x-ratelimit-remaining": "5", "x-tokenlimit-remaining": "0", "x-ratelimit-reset": "2"}, 2.0),
        (429, {"x-ratelimit-reset": "2"}, None),
        (429, {"Retry-After": "1", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}, 1.0),
        (503, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}, None),
    ],
)
def test_retry_after(status, headers, seconds):
    outcome = failure(judge(Reply(status, httpx.Headers(headers), b"", 0.1), expects=JSON, now=NOW))
    assert outcome.retry_after_seconds == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


@given(st.text(max_size=40), st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset"]))
def test_no_header_can_break_it(value, name):
    wait = retry_after_seconds({name: value, "x-ratelimit-remaining": "0"}, 429, NOW)
    assert wait is None or 0 <= wait <= 3600


@given(st.integers(100, 599), st.binary(max_size=200), st.booleans())
def test_whatever_comes_there_is_an_outcome(status, body, binary):
    expects = BINARY if binary else Expectation(json=True, valid=lambda _: None, usage=lambda _: Usage())
    outcome = judge(reply(status, body), expects=expects, now=NOW)
    assert outcome.status == status
    if isinstance(outcome, Answer):
        assert 200 <= status < 300
    else:
        assert outcome.message
        assert outcome.message.isprintable()
        assert outcome.reason not in LANE_FAULTS or status in {401, 402, 403, 404}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["error", "message", "detail", "type", "code", "errors"]), _JSON), st.booleans())
def test_no_dialect_can_break_it(body, ok):
    outcome = judge(reply(200 if ok else 400, json.dumps(body)), expects=JSON, now=NOW)
    assert failure(outcome).message.isprintable()
