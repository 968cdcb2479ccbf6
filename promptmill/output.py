"""A result becomes a line of an output file here, in OpenAI's shape: for the command line and for the HTTP API alike.

What the upstream answered is embedded byte for byte; it is never parsed and written anew, so number formats, the order
of keys and odd escapes stay as they came. What an answer says, for people, is in `words`.
"""

import base64
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Raw

from promptmill.job import State, answer_file_id
from promptmill.kinds import lenient
from promptmill.store.results import Result

#: The first status that says by itself that the request failed.
_FIRST_ERROR_STATUS: Final = 400

_NEVER_RUN: Mapping[State, tuple[str, str]] = MappingProxyType(
    {
        State.CANCELLED: ("batch_cancelled", "This request was cancelled before it was answered."),
        State.EXPIRED: (
            "batch_expired",
            "This request could not be executed before the completion window expired.",
        ),
    }
)


def result_line(result: Result, batch_public_id: str) -> bytes:
    """One line of OpenAI's output shape, with its line end.

    A status below 400 in `response` means success, always: an answer that had status 200 and was of no use (cut off, a
    proxy's page) stands in `error`, with the status and the body as they came.
    """
    line = b'{"id":"batch_req_%b-%d","custom_id":%b,"response":%b,"error":%b}\n'
    status = result.status_code
    response = error = b"null"
    if result.state is State.SUCCEEDED or (
        result.state is State.FAILED and status is not None and status >= _FIRST_ERROR_STATUS
    ):
        embedded = json_of(result)
        response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (
            status or 200,
            msgspec.json.encode(result.request_id or ""),  # a string in OpenAI's shape, also where there is none
            _described(result, batch_public_id) if embedded is None else embedded,
        )
        if embedded is None and result.state is not State.SUCCEEDED:
            error = _error(result, batch_public_id, with_answer=False)
    else:
        error = _error(result, batch_public_id, with_answer=True)
    batch = batch_public_id.removeprefix("batch_").encode()
    return line % (batch, result.position, msgspec.json.encode(name_of(result)), response, error)


def name_of(result: Result) -> str:
    """The custom_id; a line that was too wrong to have one goes by its number, as lines without one do."""
    if result.custom_id is not None:
        return result.custom_id
    return f"position-{result.position}" if result.line is None else f"line-{result.line}"


def json_of(result: Result) -> bytes | None:
    """The answer's JSON on one line, with nothing else changed; None where the answer is something else.

    Line ends occur only between the tokens of valid JSON, so that a blank in their place changes no value.
    """
    body = result.body
    if not body or not (body.lstrip()[:1] == b"{" or "json" in result.content_type.lower()):
        return None  # `12` and `[]` are JSON too, but without a word from the upstream they are more likely text
    try:
        if not body.isascii():
            body.decode()
        lenient.decode(_VALUE, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if b"\n" in body or b"\r" in body:
        return body.strip().replace(b"\r\n", b" ").replace(b"\n", b" ").replace(b"\r", b" ")
    return body


_VALUE = msgspec.json.Decoder(Raw)


def plain_text_of(result: Result) -> str | None:
    """The answer as text, where it is text and not JSON (a transcription as subtitles, a proxy's page), else None."""
    body, content_type = result.body, result.content_type.lower()
    if _TEXTUAL.search(content_type):
        try:
            return body.decode(_charset(content_type))
        except UnicodeDecodeError:
            # The answer of a success is kept whole, as bytes; a failure's is there to be read.
            return None if result.state is State.SUCCEEDED else body.decode(errors="replace")
    if content_type.startswith(("audio/", "image/", "video/")):
        return None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text  # silence, as raw samples, is valid UTF-8


def is_binary(result: Result) -> bool:
    """Is the answer neither JSON nor text: audio, a picture?"""
    return bool(result.body) and json_of(result) is None and plain_text_of(result) is None


_TEXTUAL = re.compile(r"^text/|[/+](?:json|xml)\b|javascript|x-www-form-urlencoded|subrip")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)")
#: Others are read as UTF-8: not everything that Python calls an encoding is one of the web's.
_CHARSETS: Mapping[str, str] = MappingProxyType(
    {
        "iso-8859-1": "cp1252",  # what the web means by it
        "latin1": "cp1252",
        "windows-1252": "cp1252",
        **{name: name for name in ("iso-8859-15", "windows-1251", "gb18030", "gbk", "gb2312", "big5", "shift_jis",
                                   "euc-jp", "euc-kr", "koi8-r")},
    }
)  # fmt: skip


def _charset(content_type: str) -> str:
    found = _CHARSET.search(content_type)
    return _CHARSETS.get(found[1], "utf-8") if found else "utf-8"


def _described(result: Result, batch_public_id: str) -> bytes:
    """An answer that is not JSON, as a JSON value; by its `file_id` the HTTP door gives it as bytes."""
    text = plain_text_of(result)
    if text is not None:
        return msgspec.json.encode(text)
    data = base64.b64encode(result.body).decode("ascii")
    file_id = answer_file_id(batch_public_id, result.position)
    return msgspec.json.encode(
        {"content_type": result.content_type, "encoding": "base64", "data": data, "file_id": file_id}
    )


def _error(result: Result, batch_public_id: str, *, with_answer: bool) -> bytes:
    code, message = _NEVER_RUN.get(result.state, (result.state.value, ""))
    members = [
        b'"code":' + msgspec.json.encode(result.error_code or code),
        b'"message":' + msgspec.json.encode(result.error_message or message),
    ]
    if with_answer and result.status_code is not None:
        members.append(b'"status_code":%d' % result.status_code)
        if result.body:
            embedded = json_of(result)
            members.append(b'"body":' + (_described(result, batch_public_id) if embedded is None else embedded))
    return b"{" + b",".join(members) + b"}"
