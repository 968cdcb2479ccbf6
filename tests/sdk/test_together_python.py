"""together from PyPI, version 3: every call that it has for us, with nothing changed but its base URL and its key."""

import json
import time
from datetime import datetime

import pytest
import together
from together.types import BatchJob

from tests.sdk.places import STEADY_SECONDS, Place
from tests.sdk.prompts import MODEL, PICTURE, QUESTION, SOUND, TOOL, finished, together_lines


@pytest.fixture
def client(base: Place):
    with together.Together(base_url=base.origin, api_key=base.key, max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def prompts(tmp_path):
    """A file as Together's users have it."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(together_lines(4) + together_lines(1, first=4, temperature=3))
    return path


# ---------------------------------------------------------------------- one call, one answer


def test_chat(client: together.Together):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert answer.choices[0].message.content.startswith("Rehearsal answer")
    assert answer.usage.total_tokens > 0
    asked = client.chat.completions.create(model=MODEL, messages=PICTURE, tools=[TOOL], tool_choice="auto")
    assert asked.choices[0].message.tool_calls[0].function.name == "go"


def test_a_stream_is_passed_on_as_it_comes(base: Place, client: together.Together):
    model = base.model("steady", "together-streams")
    began = time.monotonic()
    with client.chat.completions.create(model=model, messages=QUESTION, stream=True) as stream:
        pieces = [(time.monotonic() - began, chunk.choices[0].delta.content or "") for chunk in stream if chunk.choices]
    assert "".join(text for _, text in pieces).startswith("Rehearsal answer")
    assert pieces[0][0] < STEADY_SECONDS - 0.5
    assert pieces[-1][0] - pieces[0][0] > STEADY_SECONDS / 4
    assert base.calls(model) == 1


def test_the_other_kinds(client: together.Together):
    text = client.completions.create(model=MODEL, prompt="Once", max_tokens=32, temperature=0.7, safety_model="guard")
    assert text.choices[0].text
    assert client.embeddings.create(model="BAAI/bge-base-en-v1.5", input="mill").data[0].embedding
    ranked = client.rerank.create(
        model="Salesforce/Llama-Rank-V1", query="river mill", documents=["stable", "mill by the river"], top_n=1
    )
    assert (ranked.results[0].index, ranked.object) == (1, "rerank")
    image = client.images.generate(model="flux", prompt="A mill", width=256, height=128, response_format="base64")
    assert image.data[0].b64_json.startswith("iVBOR")
    linked = client.images.generate(model="flux", prompt="A mill", n=2, steps=4)
    assert [entry.url.endswith(".png") for entry in linked.data] == [True, True]


def test_audio(client: together.Together, tmp_path):
    words = {"model": "cartesia/sonic", "input": "The mill.", "voice": "friendly", "response_format": "wav"}
    spoken = client.audio.speech.create(**words)
    assert spoken.read().startswith(b"RIFF")
    spoken.write_to_file(tmp_path / "mill.wav")
    with client.audio.speech.with_streaming_response.create(**words) as answer:
        answer.stream_to_file(tmp_path / "again.wav")
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "mill.wav").read_bytes()
    with client.audio.speech.create(**words, stream=True) as stream:
        assert all(chunk.b64 for chunk in stream)

    assert client.audio.transcriptions.create(model="openai/whisper-large-v3", file=SOUND).text
    verbose = client.audio.transcriptions.create(
        model="openai/whisper-large-v3", file=SOUND, response_format="verbose_json", timestamp_granularities="word"
    )
    assert verbose.words[0].word
    assert client.audio.translations.create(model="openai/whisper-large-v3", file=SOUND).text


def test_models(client: together.Together):
    """Version 3 has no call for them any more (its models.list() is about one's own); earlier ones want an array."""
    assert "MiniMaxAI/MiniMax-M1-40k" in [model["id"] for model in client.get("/v1/models", cast_to=object)]


# ---------------------------------------------------------------------- what goes wrong


def test_errors_are_the_sdks_own(base: Place, client: together.Together, prompts):
    with pytest.raises(together.BadRequestError, match="Messages must be a list"):
        client.chat.completions.create(model=MODEL, messages="How far is the mill?")
    with pytest.raises(together.NotFoundError, match="Unable to access model missing/two"):
        client.chat.completions.create(model="missing/two", messages=QUESTION)
    with together.Together(base_url=base.origin, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(together.AuthenticationError, match="The API key is not one of this server's"):
            stranger.chat.completions.create(model=MODEL, messages=QUESTION)
        with pytest.raises(together.AuthenticationError):
            stranger.files.upload(file=str(prompts), purpose="batch-api")
        with pytest.raises(together.AuthenticationError):
            stranger.batches.list()
    with pytest.raises(together.NotFoundError):
        client.files.retrieve("file-0000")
    with pytest.raises(together.NotFoundError):
        client.batches.retrieve("batch_0000")
    with pytest.raises(together.BadRequestError, match="file-0000"):
        client.batches.create(input_file_id="file-0000", endpoint="/v1/chat/completions")


# ---------------------------------------------------------------------- what our headers do


def test_an_idempotency_key_is_one_call(base: Place, client: together.Together):
    model = base.model("plain", "together-once")
    key = {"Idempotency-Key": "the order of Together's mill"}
    first, again = (client.chat.completions.create(model=model, messages=QUESTION, extra_headers=key) for _ in range(2))
    assert again == first
    assert base.calls(model) == 1


# ---------------------------------------------------------------------- files and batches


def test_files(client: together.Together, prompts):
    made = client.files.upload(file=str(prompts), purpose="batch-api")
    assert (made.object, made.filename, made.file_type, made.purpose) == ("file", "prompts.jsonl", "jsonl", "batch-api")
    assert made.bytes == prompts.stat().st_size
    again = client.files.retrieve(made.id)
    assert (again.id, again.bytes, again.processing_status) == (made.id, made.bytes, "COMPLETED")
    assert made.id in [file.id for file in client.files.list().data]
    assert client.files.content(made.id).read() == prompts.read_bytes()
    with client.files.with_streaming_response.content(made.id) as answer:
        assert b"".join(answer.iter_bytes()) == prompts.read_bytes()
    assert client.files.delete(made.id).deleted
    with pytest.raises(together.NotFoundError):
        client.files.retrieve(made.id)


def test_a_batch_from_the_file_to_its_answers(client: together.Together, prompts):
    file = client.files.upload(file=str(prompts), purpose="batch-api")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", priority=1).job
    assert (made.input_file_id, made.endpoint) == (file.id, "/v1/chat/completions")
    batch = finished(lambda: client.batches.retrieve(made.id), BatchJob)
    assert (batch.id, batch.status, batch.progress, batch.error) == (made.id, "COMPLETED", 100.0, None)
    assert all(isinstance(moment, datetime) for moment in (batch.created_at, batch.completed_at, batch.job_deadline))
    assert batch.file_size_bytes == prompts.stat().st_size

    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).read().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["0", "1", "2", "3"]
    assert all(answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers)
    (failure,) = [json.loads(line) for line in client.files.content(batch.error_file_id).read().splitlines()]
    assert (failure["custom_id"], failure["response"]["status_code"]) == ("4", 400)
    assert client.files.retrieve(batch.output_file_id).file_type == "jsonl"

    listed = client.batches.list()
    assert all(isinstance(job, BatchJob) for job in listed)
    assert batch.id in [job.id for job in listed]


def test_a_wrong_file_ends_its_batch_as_failed(client: together.Together, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_bytes(together_lines(1) + together_lines(1))
    file = client.files.upload(file=str(path), purpose="batch-api")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions").job
    batch = finished(lambda: client.batches.retrieve(made.id), BatchJob)
    assert batch.status == "FAILED"
    assert "line 2" in batch.error


def test_a_batch_cancelled(base: Place, client: together.Together, tmp_path):
    path = tmp_path / "slow.jsonl"
    path.write_bytes(together_lines(30, model=base.model("slow", "together-cancelled")))
    file = client.files.upload(file=str(path), purpose="batch-api")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions").job
    assert client.batches.cancel(made.id).status in ("IN_PROGRESS", "CANCELLED")
    assert finished(lambda: client.batches.retrieve(made.id), BatchJob).status == "CANCELLED"


async def test_the_async_client_with_a_base_that_ends_in_v1(base: Place, prompts):
    """Version 3 then asks for /v1/v1/…, since earlier versions wanted the base so."""
    async with together.AsyncTogether(base_url=base.url, api_key=base.key) as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=QUESTION)
        assert answer.choices[0].message.content
        stream = await sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        assert [chunk async for chunk in stream]
        file = await sdk.files.upload(file=str(prompts), purpose="batch-api")
        made = (await sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions")).job
        batch = await sdk.get(f"/batches/{made.id}?wait=20", cast_to=BatchJob)
        assert batch.status == "COMPLETED"
        output = await sdk.files.content(batch.output_file_id)
        assert len((await output.read()).splitlines()) == 4
        assert made.id in [job.id for job in await sdk.batches.list()]
        assert (await sdk.files.delete(file.id)).deleted
