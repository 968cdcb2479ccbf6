"""audio/transcriptions and audio/translations: words drawn from the sound's bytes, timed over its length."""

import math
from collections.abc import Sequence
from typing import Any

from cli.simulate import checks
from cli.simulate.answers.tones import seconds_of_wav
from cli.simulate.call import Call
from cli.simulate.grain import draw, words
from cli.simulate.reply import Refusal, Reply

_FORMATS = ("json", "verbose_json", "text")
_GRANULARITIES = ("segment", "word")
_BYTES_PER_SECOND = 16_000  # of compressed audio, roughly
_WORDS_PER_SECOND = 2.5
_MOST_WORDS = 200
_WORDS_IN_SEGMENT = 10
_URL_SECONDS = 10.0


def transcribe(call: Call) -> Reply:
    return _answer(call, task="transcribe", language=call.body.get("language") or "en")


def translate(call: Call) -> Reply:
    """Into English, whatever it was."""
    return _answer(call, task="translate", language="en")


def _answer(call: Call, *, task: str, language: object) -> Reply:
    seconds = _seconds(call)
    asked = checks.one_of(call.body, "response_format", _FORMATS) or "json"
    granularities = _granularities(call.body.get("timestamp_granularities"))
    count = min(_MOST_WORDS, max(1, round(seconds * _WORDS_PER_SECOND)))
    spoken = [call.hex_id[:8], *words(call.grain, "spoken", count)]
    text = " ".join(spoken).capitalize() + "."
    if asked == "text":
        return Reply(200, b"text/plain; charset=utf-8", f"{text}\n".encode())
    content: dict[str, Any] = {"text": text}
    if asked == "verbose_json":
        content |= {"task": task, "language": language, "duration": round(seconds, 3)}
        content["segments"] = _segments(call, spoken, seconds)
        if "word" in granularities:
            content["words"] = _words(spoken, seconds)
        content["usage"] = {"type": "duration", "seconds": math.ceil(seconds)}
    return Reply.of_json(content)


def _seconds(call: Call) -> float:
    """The length of the sound; its file is either uploaded or, with Together, named by its URL."""
    upload = call.files.get("file")
    if upload is None:
        url = call.body.get("file")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise checks.missing("file")
        return _URL_SECONDS
    if not upload.content:
        raise Refusal(400, "The audio file is empty.", param="file", code="invalid_value")
    known = seconds_of_wav(upload.content)
    return len(upload.content) / _BYTES_PER_SECOND if known is None else known


def _granularities(value: object) -> Sequence[object]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for item in listed:
        if item not in _GRANULARITIES:
            raise checks.wrong_value("timestamp_granularities", f"supported values are: {', '.join(_GRANULARITIES)}.")
    return listed


def _words(spoken: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    each = seconds / len(spoken)
    return [
        {"word": word, "start": round(at * each, 3), "end": round((at + 1) * each, 3)} for at, word in enumerate(spoken)
    ]


def _segments(call: Call, spoken: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    each = seconds / len(spoken)
    segments = []
    for number, first in enumerate(range(0, len(spoken), _WORDS_IN_SEGMENT)):
        part = spoken[first : first + _WORDS_IN_SEGMENT]
        segment = {
            "id": number,
            "seek": round(first * each * 100),
            "start": round(first * each, 3),
            "end": round((first + len(part)) * each, 3),
            "text": " " + " ".join(part),
            "tokens": [draw(call.grain, word) % 50_000 for word in part],
            "temperature": 0.0,
            "avg_logprob": -0.25,
            "compression_ratio": 1.2,
            "no_speech_prob": 0.01,
        }
        segments.append(segment)
    return segments
