"""openai from PyPI: every call that it has for us, with nothing changed but its base URL and its key."""

import io
import json
import time

import httpx
import openai
import pytest

from tests.sdk.places import STEADY_SECONDS, Place
from tests.sdk.prompts import MODEL, PICTURE, QUESTION, SOUND, TOOL, finished, openai_lines


@pytest.fixture
def client(base: Place):
    with openai.OpenAI(base_url=base.url, api_key=base.key, max_retries=0) as sdk:
        yield sdk


# ---------------------------------------------------------------------- one call, one answer


def test_chat(client: openai.OpenAI):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content.startswith("Rehearsal answer")
    assert answer.usage.total_tokens > 0
    assert answer._request_id
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
    assert raw.headers["x-promptmill-job"].startswith("job_")
    assert raw.parse().choices[0].message.content == answer.choices[0].message.content

    seen = client.chat.completions.create(model=MODEL, messages=PICTURE)
    assert seen.choices[0].message.content
    asked = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[TOOL], tool_choice="auto")
    call = asked.choices[0].message.tool_calls[0]
    assert (call.type, call.function.name, "to" in call.function.arguments) == ("function", "go", True)


def test_chat_streamed(client: openai.OpenAI):
    with client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("Rehearsal answer")
    assert text.endswith(".")
    assert chunks[-1].usage.total_tokens > 0


def test_a_stream_is_passed_on_as_it_comes(base: Place, client: openai.OpenAI):
    model = base.model("steady", "openai-streams")
    began = time.monotonic()
    with client.chat.completions.create(model=model, messages=QUESTION, stream=True) as stream:
        moments = [time.monotonic() - began for _ in stream]
    assert moments[0] < STEADY_SECONDS - 0.5
    assert moments[-1] - moments[0] > STEADY_SECONDS / 4
    assert base.calls(model) == 1


def test_the_other_kinds(client: openai.OpenAI):
    text = client.completions.create(model=MODEL, prompt="Once", extra_body={"safety_model": "guard"})
    assert text.object == "text_completion"
    assert text.choices[0].text
    with client.completions.create(model=MODEL, prompt="Once", stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream).startswith(" Rehearsal answer")

    vectors = client.embeddings.create(model="text-embedding-3-small", input=["mill", "stable"], dimensions=64)
    assert [len(entry.embedding) for entry in vectors.data] == [64, 64]
    floats = client.embeddings.create(
        model="text-embedding-3-small", input="mill", dimensions=64, encoding_format="float"
    )
    assert floats.data[0].embedding == pytest.approx(vectors.data[0].embedding, abs=1e-6)

    image = client.images.generate(model="dall-e-2", prompt="A mill", response_format="b64_json", size="256x256")
    assert image.data[0].b64_json.startswith("iVBOR")
    linked = client.images.generate(model="dall-e-2", prompt="A mill", n=2)
    assert [entry.url.endswith(".png") for entry in linked.data] == [True, True]


def test_audio(client: openai.OpenAI, tmp_path):
    spoken = client.audio.speech.create(model="tts-1", voice="alloy", input="The mill.", response_format="mp3")
    assert spoken.content.startswith(b"ID3")
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="The mill.", response_format="mp3"
    ) as answer:
        answer.stream_to_file(tmp_path / "mill.mp3")
    assert (tmp_path / "mill.mp3").read_bytes() == spoken.content

    assert client.audio.transcriptions.create(model="whisper-1", file=SOUND).text
    verbose = client.audio.transcriptions.create(
        model="whisper-1", file=SOUND, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert verbose.duration == pytest.approx(2.5)
    assert verbose.segments[0].id == 0
    assert verbose.words[0].word
    assert isinstance(client.audio.transcriptions.create(model="whisper-1", file=SOUND, response_format="text"), str)


def test_models(client: openai.OpenAI):
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


async def test_the_async_client(base: Place):
    async with openai.AsyncOpenAI(base_url=base.url, api_key=base.key) as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=QUESTION)
        assert answer.choices[0].message.content
        stream = await sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("Rehearsal answer")
        assert (await sdk.audio.transcriptions.create(model="whisper-1", file=SOUND)).text
        assert [model async for model in sdk.models.list()]


# ---------------------------------------------------------------------- what goes wrong


def test_errors_are_the_sdks_own(base: Place, client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as no_messages:
        client.chat.completions.create(model=MODEL, messages="How far is the mill?")
    assert "Messages must be a list" in no_messages.value.message
    with pytest.raises(openai.BadRequestError) as too_hot:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=3)
    assert (too_hot.value.param, too_hot.value.code) == ("temperature", "integer_above_max_value")  # as upstream said
    with pytest.raises(openai.NotFoundError, match="Unable to access model missing/one") as no_model:
        client.chat.completions.create(model="missing/one", messages=QUESTION)
    assert no_model.value.code == "model_not_available"
    with openai.OpenAI(base_url=base.url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.chat.completions.create(model=MODEL, messages=QUESTION)
        assert (refused.value.code, refused.value.type) == ("invalid_api_key", "authentication_error")
        with pytest.raises(openai.AuthenticationError):
            stranger.files.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-0000")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_0000")
    with pytest.raises(openai.BadRequestError, match="file-0000"):
        client.batches.create(input_file_id="file-0000", endpoint="/v1/chat/completions", completion_window="24h")


# ---------------------------------------------------------------------- what our headers do


def test_an_idempotency_key_is_one_call_whichever_process_is_asked(base: Place, client: openai.OpenAI):
    model = base.model("plain", "openai-once")
    key = {"Idempotency-Key": "the order of the mill"}
    first = client.chat.completions.create(model=model, messages=QUESTION, extra_headers=key)
    twin = client.with_options(base_url=f"{base.twin_origin}/v1")
    assert twin.chat.completions.create(model=model, messages=QUESTION, extra_headers=key) == first
    with pytest.raises(openai.ConflictError):
        twin.chat.completions.create(model=model, messages=PICTURE, extra_headers=key)
    assert base.calls(model) == 1


def test_respond_async(base: Place, client: openai.OpenAI):
    model = base.model("steady", "openai-async")
    promised = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, extra_headers={"Prefer": "respond-async"}
    )
    assert promised.status_code == 202
    job = client.get(f"{promised.headers['location']}?wait=20", cast_to=httpx.Response).json()
    assert job["status"] == "succeeded"
    assert job["result"]["response"]["body"]["choices"][0]["message"]["content"]
    assert base.calls(model) == 1


# ---------------------------------------------------------------------- files and batches


def test_files(base: Place, client: openai.OpenAI):
    data = openai_lines(3)
    made = client.files.create(
        file=("mill.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.object, made.filename, made.purpose, made.bytes) == ("file", "mill.jsonl", "batch", len(data))
    assert made.expires_at == made.created_at + 3600
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.retrieve(made.id).id == made.id
    assert client.files.content(made.id).read() == data
    twin = client.with_options(base_url=f"{base.twin_origin}/v1")
    assert twin.files.content(made.id).read() == data
    with client.files.with_streaming_response.content(made.id) as answer:
        assert b"".join(answer.iter_bytes()) == data
    second = client.files.create(file=io.BytesIO(data), purpose="user_data")
    assert [file.id for file in client.files.list(limit=1, order="desc")][:2] == [
        second.id,
        made.id,
    ]  # it asks for pages
    assert [file.id for file in client.files.list(purpose="user_data")] == [second.id]
    for file in (made, second):
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)


def test_uploads_in_parts(client: openai.OpenAI):
    data = openai_lines(4)
    middle = len(data) // 2
    upload = client.uploads.create(
        bytes=len(data), filename="parts.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    assert (upload.object, upload.status, upload.bytes) == ("upload", "pending", len(data))
    second, first = (client.uploads.parts.create(upload.id, data=part) for part in (data[middle:], data[:middle]))
    assert first.object == "upload.part"
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
    assert done.status == "completed"
    assert client.files.content(done.file.id).read() == data

    left = client.uploads.create(bytes=5, filename="left.jsonl", mime_type="application/jsonl", purpose="batch")
    assert client.uploads.cancel(left.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(left.id, part_ids=[])


def test_a_file_uploaded_in_chunks_by_the_sdk(client: openai.OpenAI):
    data = openai_lines(4)
    done = client.uploads.upload_file_chunked(
        file=data,
        filename="chunks.jsonl",
        bytes=len(data),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=200,
    )
    assert client.files.content(done.file.id).read() == data


def test_a_batch_from_the_file_to_its_answers(client: openai.OpenAI):
    lines = openai_lines(4) + openai_lines(1, first=4, temperature=3)
    file = client.files.create(file=("prompts.jsonl", lines), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "the mill"}
    )
    assert (made.object, made.endpoint, made.input_file_id) == ("batch", "/v1/chat/completions", file.id)
    assert (made.completion_window, made.metadata) == ("24h", {"for": "the mill"})
    batch = finished(lambda: client.batches.retrieve(made.id), openai.types.Batch)
    assert (batch.status, batch.id) == ("completed", made.id)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 4, 1)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at <= batch.expires_at
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0

    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["0", "1", "2", "3"]
    assert {answer["response"]["status_code"] for answer in answers} == {200}
    assert all(answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers)
    (failure,) = [json.loads(line) for line in client.files.content(batch.error_file_id).iter_lines()]
    assert (failure["custom_id"], failure["response"]["status_code"]) == ("4", 400)
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.status) == ("batch_output", "processed")

    listed = client.batches.list(limit=1)
    assert listed.data[0].id == batch.id
    assert batch.id in [found.id for found in client.batches.list(limit=1)]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_wrong_file_ends_its_batch_as_failed(client: openai.OpenAI):
    twice = openai_lines(1) + openai_lines(1)
    file = client.files.create(file=("twice.jsonl", twice), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = finished(lambda: client.batches.retrieve(made.id), openai.types.Batch)
    assert batch.status == "failed"
    (fault,) = batch.errors.data
    assert (fault.code, fault.line) == ("duplicate_custom_id", 2)


def test_a_batch_cancelled(base: Place, client: openai.OpenAI):
    file = client.files.create(
        file=("slow.jsonl", openai_lines(30, model=base.model("slow", "openai-cancelled"))), purpose="batch"
    )
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    batch = finished(lambda: client.batches.retrieve(made.id), openai.types.Batch)
    assert batch.status == "cancelled"
    assert batch.cancelling_at <= batch.cancelled_at


async def test_the_async_clients_batch(base: Place):
    async with openai.AsyncOpenAI(base_url=base.url, api_key=base.key) as sdk:
        file = await sdk.files.create(file=("prompts.jsonl", openai_lines(2)), purpose="batch")
        made = await sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        batch = await sdk.get(f"/batches/{made.id}?wait=20", cast_to=openai.types.Batch)
        assert batch.status == "completed"
        assert len((await sdk.files.content(batch.output_file_id)).text.splitlines()) == 2
        assert (await sdk.batches.list()).data[0].id == made.id
        assert (await sdk.files.delete(file.id)).deleted
