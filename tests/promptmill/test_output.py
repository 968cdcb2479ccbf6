"""Output lines: OpenAI's shape around exactly what the upstream answered."""

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.job import State
from promptmill.outcome import Usage
from promptmill.output import is_binary, json_of, name_of, result_line
from promptmill.store.results import Result

BATCH = "batch_4f1c"
CHAT = b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"}}],"usage":{"total_tokens":1e1}}'


def result(**facts) -> Result:
    usual = {
        "id": 1, "job_id": 1, "position": 17, "line": 18, "custom_id": "a", "model": "m", "state": State.SUCCEEDED,
        "attempts": 1, "finished_at": 1_700_000_000.0, "status_code": 200, "content_type": "application/json",
        "request_id": "req-1", "error_code": None, "error_message": None, "usage": Usage(1, 2), "body": CHAT,
    }  # fmt: skip
    return Result(**{**usual, **facts})


def failed(**facts) -> Result:
    usual = {"state": State.FAILED, "error_code": "server_error", "error_message": "It broke."}
    return result(**{**usual, **facts})


def parsed(**facts):
    return json.loads(result_line(result(**facts), BATCH))


def test_a_success_has_the_answer_as_it_came():
    assert result_line(result(), BATCH) == (
        b'{"id":"batch_req_4f1c-17","custom_id":"a","response":{"status_code":200,"request_id":"req-1","body":'
        + CHAT
        + b'},"error":null}\n'
    )


def test_numbers_escapes_blanks_and_the_order_of_keys_stay():
    body = rb'{ "z": 1.0e+00, "a": -0, "n": 12345678901234567890123, "s": "\u00e9\/\ud83d\ude00", "a": 2 }'
    assert b'"body":' + body + b"}" in result_line(result(body=body), BATCH)


def test_half_a_surrogate_pair_passes_through():
    body = rb'{"cut":"\ud83d"}'
    assert json_of(result(body=body)) == body


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_pretty_printed_answer_becomes_one_line_of_the_same_value(end):
    body = json.dumps({"a": [1, {"b": "x\ny\r"}]}, indent=2).replace("\n", end) + end
    line = result_line(result(body=body.encode()), BATCH)
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert json.loads(line)["response"]["body"] == json.loads(body)


def test_an_error_of_the_upstream_is_its_own_and_nothing_is_added():
    body = b'{"error":{"message":"too long","type":"invalid_request_error","param":null,"code":null}}'
    line = json.loads(result_line(failed(status_code=400, body=body, error_code="rejected"), BATCH))
    assert line["response"] == {"status_code": 400, "request_id": "req-1", "body": json.loads(body)}
    assert line["error"] is None


def test_an_error_page_is_a_text_and_the_reason_stands_beside_it():
    page = "<html>Zürich is overloaded</html>"
    html = failed(status_code=502, content_type="text/html; charset=utf-8", body=page.encode(), request_id=None)
    line = json.loads(result_line(html, BATCH))
    assert line["response"] == {"status_code": 502, "request_id": "", "body": page}
    assert line["error"] == {"code": "server_error", "message": "It broke."}


def test_a_page_in_another_charset_is_read_in_it():
    page = failed(status_code=502, content_type='text/html; Charset="ISO-8859-1"', body="Zürich".encode("latin-1"))
    assert json.loads(result_line(page, BATCH))["response"]["body"] == "Zürich"
    odd = failed(status_code=502, content_type="text/html; charset=rot13", body=b"as it is")
    assert json.loads(result_line(odd, BATCH))["response"]["body"] == "as it is"


def test_an_error_without_a_body_has_an_empty_one():
    line = json.loads(result_line(failed(status_code=503, content_type="", body=b""), BATCH))
    assert line["response"]["body"] == ""
    assert line["error"]["code"] == "server_error"


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b'{"choices":[{"mess', "application/json", '{"choices":[{"mess'),
        ('{"choices":["Zü'.encode()[:-1], "application/json", '{"choices":["Z\N{REPLACEMENT CHARACTER}'),
        (b'{"choices":[]}', "application/json", {"choices": []}),
        (b"<html>", "text/html", "<html>"),
        (
            b"\x00\x01",
            "audio/wav",
            {"content_type": "audio/wav", "encoding": "base64", "data": "AAE=", "file_id": "file-4f1c-17"},
        ),
    ],
)
def test_a_useless_answer_with_status_200_does_not_look_like_a_success(body, content_type, shown):
    useless = failed(error_code="body_truncated", error_message="cut off", body=body, content_type=content_type)
    line = json.loads(result_line(useless, BATCH))
    assert line["response"] is None
    assert line["error"] == {"code": "body_truncated", "message": "cut off", "status_code": 200, "body": shown}


def test_what_was_never_answered_says_why():
    lost = failed(status_code=None, content_type="", body=b"", error_code="dns_failed", error_message="no such host")
    line = json.loads(result_line(lost, BATCH))
    assert (line["response"], line["error"]) == (None, {"code": "dns_failed", "message": "no such host"})


@pytest.mark.parametrize(("state", "code"), [(State.CANCELLED, "batch_cancelled"), (State.EXPIRED, "batch_expired")])
def test_what_was_never_executed_has_openais_codes(state, code):
    line = parsed(state=state, status_code=None, body=b"", content_type="")
    assert line["response"] is None
    assert line["error"]["code"] == code
    assert line["error"]["message"].startswith("This request ")


def test_a_cancelled_job_is_not_shown_as_an_http_failure():
    line = parsed(state=State.CANCELLED, status_code=500, body=b'{"error":"x"}')
    assert line["response"] is None
    assert line["error"]["code"] == "batch_cancelled"


def test_an_invalid_line_goes_by_its_number():
    line = parsed(
        state=State.INVALID, status_code=None, body=b"", content_type="", custom_id=None,
        error_code="invalid_json_line", error_message="line 18: not JSON",
    )  # fmt: skip
    assert line["custom_id"] == "line-18"
    assert line["error"] == {"code": "invalid_json_line", "message": "line 18: not JSON"}


def test_a_result_whose_input_is_gone_goes_by_its_position():
    assert name_of(result(custom_id=None, line=None)) == "position-17"


def test_audio_is_base64():
    line = parsed(body=b"RIFF\x00\xff", content_type="audio/wav")
    assert line["response"]["body"] == {
        "content_type": "audio/wav",
        "encoding": "base64",
        "data": base64.b64encode(b"RIFF\x00\xff").decode(),
        "file_id": "file-4f1c-17",
    }


@pytest.mark.parametrize(
    ("body", "content_type", "binary"),
    [
        (b"\x00" * 64, "application/octet-stream", True),  # silence is valid UTF-8
        (b"\xff\xfe", "", True),
        (b"plain words", "", False),
        (b"1\n00:00:01,000 --> 00:00:02,000\nHi\n", "application/x-subrip", False),
        (b"words", "audio/mpeg", True),
        (b"\xff\xfe", "text/plain", True),  # a success is kept whole
        (CHAT, "application/octet-stream", False),
        (CHAT, "", False),
        (b"", "audio/wav", False),
        (b"12", "application/json", False),
    ],
)
def test_what_is_neither_json_nor_text_is_binary(body, content_type, binary):
    assert is_binary(result(body=body, content_type=content_type)) is binary


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b"12", "text/plain", "12"),
        (b"12", "application/json", 12),
        (b"[1, 2]", "application/json; charset=utf-8", [1, 2]),
        (b"[Music]", "text/plain", "[Music]"),
        (b"", "text/plain", ""),
        (b'{"a":NaN}', "application/json", '{"a":NaN}'),
        (b'{"a":"' + b"\x01" + b'"}', "application/json", '{"a":"\x01"}'),
        (b"[" * 100_000, "application/json", "[" * 100_000),
        (b"[" * 5_000 + b"]" * 5_000, "application/json", "[" * 5_000 + "]" * 5_000),
        (b'{"a":"\xff"}', "application/problem+json", None),
    ],
)
def test_text_that_looks_like_json_and_json_that_is_none(body, content_type, shown):
    body_shown = parsed(body=body, content_type=content_type)["response"]["body"]
    if shown is None:
        assert base64.b64decode(body_shown["data"]) == body
    else:
        assert body_shown == shown


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),  # lone surrogates too: json.dumps escapes them
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=5), st.sampled_from([None, 1, "\t"]), st.text(min_size=1))
def test_any_json_is_kept_on_one_line(value, indent, custom_id):
    body = json.dumps(value, indent=indent).encode()
    line = result_line(result(body=body, custom_id=custom_id), BATCH)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    read = json.loads(line)
    assert read["response"]["body"] == value
    assert read["custom_id"] == custom_id
    if b"\n" not in body:
        assert b'"body":' + body + b'},"error":null}\n' in line


@given(
    st.binary(max_size=200),
    st.sampled_from(["", "application/json", "text/plain", "text/html; charset=gbk", "audio/wav", "nonsense"]),
    st.sampled_from([None, 200, 302, 400, 500]),
    st.sampled_from(sorted(state for state in State)),
    st.text(max_size=20),
)
def test_any_bytes_make_one_line_of_valid_json(body, content_type, status, state, words):
    line = result_line(
        result(
            body=body, content_type=content_type, status_code=status, state=state, error_code=words or None,
            error_message=words, request_id=words,
        ),
        BATCH,
    )  # fmt: skip
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    read = msgspec.json.decode(line)
    assert list(read) == ["id", "custom_id", "response", "error"]
    succeeded = read["response"] is not None and read["response"]["status_code"] < 400
    assert succeeded is (state == State.SUCCEEDED and (status or 200) < 400)


@given(st.binary(max_size=300).filter(lambda body: not body.lstrip().startswith(b"{")))
def test_a_binary_answer_comes_back_whole(body):
    shown = parsed(body=body, content_type="audio/wav")["response"]["body"]
    assert base64.b64decode(shown["data"]) == body
