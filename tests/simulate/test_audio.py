"""Speech out and in, on the wire: sounds that decode, uploads as clients send them."""

import base64
import io
import json
import wave

import pytest

from cli.simulate.answers import tones

WAV = tones.wav(tones.tone(440, 2.0, 16_000), 16_000)
SPEECH = {"model": "m", "input": "The mill stands by the river.", "voice": "tara"}


@pytest.fixture
async def server(start):
    return await start()


@pytest.mark.parametrize("path", ["/audio/speech", "/audio/generations"])
async def test_wav(server, http, path):
    answer = await http.post(f"{server.url}{path}", json=SPEECH | {"response_format": "wav", "sample_rate": 16_000})
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 16_000)
        assert sound.getnframes() == pytest.approx(16_000 * len(SPEECH["input"]) / 15, abs=1)


async def test_mp3_is_frames_of_its_announced_length(server, http):
    answer = await http.post(f"{server.url}/audio/speech", json=SPEECH | {"response_format": "mp3"})
    assert answer.headers["content-type"] == "audio/mpeg"
    content = answer.content
    assert content[:3] == b"ID3"
    tag = sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    frames = content[10 + tag :]
    # 144 * 32,000 bit/s / 44,100 samples/s bytes a frame.
    assert len(frames) % 104 == 0
    assert {frames[at : at + 4] for at in range(0, len(frames), 104)} == {bytes.fromhex("fffb10c4")}


async def test_raw_is_samples_alone(server, http):
    answer = await http.post(f"{server.url}/audio/speech", json=SPEECH | {"response_format": "raw"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert len(answer.content) == 2 * round(24_000 * len(SPEECH["input"]) / 15)


@pytest.mark.parametrize(
    ("agent", "content_type"), [("OpenAI/Python 3", "audio/mpeg"), ("Together/Python 3", "audio/wav")]
)
async def test_defaults_are_the_vendors(server, http, agent, content_type):
    answer = await http.post(f"{server.url}/audio/speech", json=SPEECH, headers={"user-agent": agent})
    assert answer.headers["content-type"] == content_type


async def test_speech_streams_in_chunks(server, http):
    answer = await http.post(f"{server.url}/audio/speech", json=SPEECH | {"stream": True})
    *events, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("audio.tts.chunk", "m")}
    whole = await http.post(f"{server.url}/audio/speech", json=SPEECH | {"response_format": "raw"})
    assert len(b"".join(base64.b64decode(chunk["b64"]) for chunk in chunks)) == len(whole.content)


async def transcribe(server, http, path="/audio/transcriptions", files=None, **fields):
    files = {"file": ("mill.wav", WAV, "audio/wav")} if files is None else files
    return await http.post(f"{server.url}{path}", data={"model": "whisper"} | fields, files=files)


async def test_transcription_in_three_formats(server, http):
    plain = await transcribe(server, http)
    assert set(plain.json()) == {"text"}
    text = await transcribe(server, http, response_format="text")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.strip().count(" ") == plain.json()["text"].count(" ")
    verbose = await transcribe(
        server, http, response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]}
    )
    answer = verbose.json()
    assert answer["duration"] == 2.0
    assert answer["task"] == "transcribe"
    assert answer["words"][0]["start"] == answer["segments"][0]["start"] == 0
    assert answer["words"][-1]["end"] == answer["segments"][-1]["end"] == 2.0
    assert len(answer["words"]) == answer["text"].count(" ") + 1


async def test_words_only_when_asked_for(server, http):
    assert "words" not in (await transcribe(server, http, response_format="verbose_json")).json()
    asked = await transcribe(server, http, response_format="verbose_json", timestamp_granularities="word")
    assert "words" in asked.json()


async def test_translation(server, http):
    answer = await transcribe(server, http, "/audio/translations", response_format="verbose_json", language="de")
    assert (answer.json()["task"], answer.json()["language"]) == ("translate", "en")


async def test_the_same_upload_is_the_same_request_whatever_its_boundary(server, http):
    first, second = await transcribe(server, http), await transcribe(server, http)
    assert first.request.headers["content-type"] != second.request.headers["content-type"]
    assert first.json() == second.json()
    assert server.stats.duplicates == 1
    other = await transcribe(server, http, files={"file": ("mill.wav", WAV[:-2], "audio/wav")})
    assert other.json() != first.json()


async def test_a_file_may_be_named_by_its_url(server, http):
    url = (None, b"https://example.com/mill.mp3")
    assert (await transcribe(server, http, files={"file": url})).status_code == 200


@pytest.mark.parametrize(
    ("files", "param"),
    [({"other": ("a", b"x")}, "file"), ({"file": (None, b"mill.mp3")}, "file"), ({"file": ("a.mp3", b"")}, "file")],
)
async def test_no_file_is_a_bad_request(server, http, files, param):
    answer = await transcribe(server, http, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"model": "m"}'),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: text/plain\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"junk\r\n--x--\r\n"),
    ],
)
async def test_what_is_no_form_is_a_bad_request(server, http, content_type, body):
    headers = {"content-type": content_type}
    answer = await http.post(f"{server.url}/audio/transcriptions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_forms_as_other_clients_write_them(server, http):
    """Quoted boundary, preamble line break, unquoted names, and line breaks inside the file."""
    body = (
        b"\r\n--b c\r\nContent-Disposition: form-data; name=model\r\n\r\nwhisper\r\n"
        b'--b c\r\ncontent-disposition: form-data; name="file"; filename="a\\"b.mp3"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--b\r\nbytes\r\n\r\n--b c--\r\n"
    )
    headers = {"content-type": 'multipart/form-data; boundary="b c"'}
    answer = await http.post(f"{server.url}/audio/transcriptions", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


async def test_an_upload_without_a_length(server, http):
    form = http.build_request("POST", "http://x", data={"model": "m"}, files={"file": ("a.wav", WAV)})

    async def chunks():
        content = form.read()
        for at in range(0, len(content), 10_000):
            yield content[at : at + 10_000]

    headers = {"content-type": form.headers["content-type"]}
    answer = await http.post(f"{server.url}/audio/transcriptions", content=chunks(), headers=headers)
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.status_code == 200


def test_lengths_of_wavs():
    assert tones.seconds_of_wav(WAV) == 2.0
    assert tones.seconds_of_wav(WAV[:44]) == 0.0
    assert tones.seconds_of_wav(b"RIFF????WAVE") is None
    assert tones.seconds_of_wav(b"ID3") is None
