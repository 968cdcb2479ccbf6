"""What an answer says, and what was thought before."""

import json

import pytest

from promptmill.job import State
from promptmill.outcome import Usage
from promptmill.store.results import Result
from promptmill.words import reasoning_of, said, text_of


def answered(body: object, content_type: str = "application/json", state: State = State.SUCCEEDED) -> Result:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Result(1, 1, 0, 1, "a", "m", state, 1, 0.0, 200, content_type, None, None, None, Usage(), raw)


def chat(content: object, **message: object) -> Result:
    return answered({"choices": [{"message": {"role": "assistant", "content": content, **message}}]})


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("Hi", "Hi", None),
        (" keeps its blanks \n", " keeps its blanks \n", None),
        ("", "", None),
        ("<think>\nhm\n</think>\n\nHi", "Hi", "hm"),
        ("\n<think></think>Hi", "Hi", None),
        ("<think>cut off by max_tok", "", "cut off by max_tok"),
        ("<think>a</think>b</think>c", "b</think>c", "a"),
        ("hm, so\n</think>\n\nHi", "Hi", "hm, so"),
        ("The tag </think> ends it.", "The tag </think> ends it.", None),
        ("Tags:\n<think>\n</think>\n", "Tags:\n<think>\n</think>\n", None),
        ([{"type": "text", "text": "Hi "}, {"type": "image"}, {"type": "text", "text": "you"}], "Hi you", None),
        (None, None, None),
        (12, None, None),
    ],
)
def test_thinking_is_told_apart(content, text, reasoning):
    assert said(chat(content)) == (text, reasoning)
    assert text_of(chat(content)) == text
    assert reasoning_of(chat(content)) == reasoning


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_in_a_field_of_its_own(field):
    assert said(chat("Hi", **{field: "hm"})) == ("Hi", "hm")
    assert said(chat(None, **{field: "hm"})) == (None, "hm")
    assert said(chat("Hi", **{field: ""})) == ("Hi", None)
    assert said(chat("Hi", **{field: {"odd": 1}})) == ("Hi", None)
    assert said(chat("<think>again</think>Hi", **{field: "hm"})) == ("Hi", "hm")


def test_a_refusal_is_what_was_said():
    assert text_of(chat(None, refusal="I will not.")) == "I will not."


def test_tool_calls_are_no_text():
    assert said(chat(None, tool_calls=[{"function": {"name": "f"}}])) == (None, None)


def test_of_several_choices_the_first():
    assert text_of(answered({"choices": [{"text": "one"}, {"text": "two"}]})) == "one"


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ({"text": "spoken words", "segments": []}, "application/json", "spoken words"),
        ({"text": ""}, "application/json", ""),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nHi\n", "text/vtt", "WEBVTT\n\n00:00.000 --> 00:01.000\nHi\n"),
        (rb'{"text":"cut \ud83d"}', "application/json", "cut \N{REPLACEMENT CHARACTER}"),
        ({"data": [{"embedding": [0.1]}]}, "application/json", None),
        ({"results": []}, "application/json", None),
        ({"choices": "odd"}, "application/json", None),
        ({"choices": [{"message": 1}]}, "application/json", None),
        ({"choices": []}, "application/json", None),
        ({"choices": [{}]}, "application/json", None),
        ([1], "application/json", None),
        (b"RIFF\x00\xff", "audio/wav", None),
        (b"", "application/json", None),
    ],
)
def test_every_kind_of_answer(body, content_type, text):
    assert said(answered(body, content_type)) == (text, None)


def test_failures_say_nothing():
    assert said(answered({"text": "x"}, state=State.FAILED)) == (None, None)
