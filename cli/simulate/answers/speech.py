"""audio/speech, also reached as audio/generations: a tone as long as the text would take, whole or streamed."""

import base64
import itertools

from cli.simulate import checks, sse
from cli.simulate.answers import tones
from cli.simulate.call import Call
from cli.simulate.grain import between, tokens_of
from cli.simulate.reply import Reply, Usage

_CONTENT_TYPES = {
    "mp3": b"audio/mpeg",
    "wav": b"audio/wav",
    "raw": b"application/octet-stream",
    "pcm": b"application/octet-stream",
}
_CHARACTERS_PER_SECOND = 15  # of spoken English
_MOST_SECONDS = 5.0
_SAMPLES_PER_SECOND = 24_000
_CHUNK_BYTES = 16_384


def answer(call: Call) -> Reply:
    body = call.body
    text = checks.text(body, "input")
    checks.text(body, "voice")
    streams = checks.flag(body, "stream")
    asked = checks.one_of(body, "response_format", tuple(_CONTENT_TYPES))
    # Together speaks WAV unless asked otherwise, and raw in a stream; OpenAI's default is MP3.
    format_ = asked or ("raw" if streams else "mp3" if call.dialect == "openai" else "wav")
    rate = checks.integer(body, "sample_rate", low=8000, high=48_000) or _SAMPLES_PER_SECOND
    seconds = min(_MOST_SECONDS, max(0.1, len(text) / _CHARACTERS_PER_SECOND))
    audio = _audio(call, format_, seconds, rate)
    usage = Usage(tokens_of(len(text)))
    if streams:
        return Reply(200, sse.EVENT_STREAM, events=_events(call, audio), usage=usage)
    return Reply(200, _CONTENT_TYPES[format_], audio, usage=usage)


def _audio(call: Call, format_: str, seconds: float, rate: int) -> bytes:
    if format_ == "mp3":
        return tones.mp3(seconds, f"Rehearsal {call.hex_id[:8]}")
    samples = tones.tone(between(call.grain, "hertz", 220, 880), seconds, rate)
    return tones.wav(samples, rate) if format_ == "wav" else samples


def _events(call: Call, audio: bytes) -> tuple[bytes, ...]:
    chunks = (audio[at : at + _CHUNK_BYTES] for at in range(0, len(audio), _CHUNK_BYTES))
    events = (
        sse.event({"object": "audio.tts.chunk", "model": call.model, "b64": base64.b64encode(chunk).decode()})
        for chunk in chunks
    )
    return tuple(itertools.chain(events, (sse.DONE,)))
