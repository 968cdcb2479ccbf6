"""The OpenAI SDK, as people use it: what it makes of our answers is the test of their shape."""

import httpx
import openai
import pytest


@pytest.fixture
async def client(start):
    server = await start(api_key="key")
    async with openai.AsyncOpenAI(base_url=server.url, api_key="key", max_retries=0) as sdk:
        yield sdk


MESSAGES = [{"role": "user", "content": "How far is the mill?"}]
TOOL = {
    "type": "function",
    "function": {"name": "go", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}},
}


async def test_chat(client):
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert answer.choices[0].message.content.startswith("Rehearsal answer")
    assert answer.usage.total_tokens > 0
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert answer._request_id.startswith("req_")


async def test_chat_stream(client):
    stream = await client.chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("Rehearsal answer")
    assert chunks[-1].usage.total_tokens > 0


async def test_tools(client):
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, tools=[TOOL])
    call = answer.choices[0].message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "go")
    assert "to" in call.function.arguments


async def test_completions(client):
    answer = await client.completions.create(model="m", prompt="Once", extra_body={"safety_model": "guard"})
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    stream = await client.completions.create(model="m", prompt="Once", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]).startswith(" Rehearsal answer")


async def test_embeddings_which_it_asks_for_in_base64(client):
    answer = await client.embeddings.create(model="text-embedding-3-small", input=["mill", "stable"], dimensions=64)
    assert [len(entry.embedding) for entry in answer.data] == [64, 64]
    assert sum(number * number for number in answer.data[0].embedding) == pytest.approx(1, abs=1e-4)


async def test_images(client):
    answer = await client.images.generate(model="dall-e-2", prompt="A mill", response_format="b64_json", size="256x256")
    assert answer.data[0].b64_json.startswith("iVBOR")
    linked = await client.images.generate(model="dall-e-2", prompt="A mill", n=2)
    assert [image.url.endswith("-1024x1024.png") for image in linked.data] == [True, True]


async def test_speech(client):
    answer = await client.audio.speech.create(model="tts-1", voice="alloy", input="The mill.")
    assert answer.content.startswith(b"ID3")


async def test_transcriptions(client):
    sound = ("mill.mp3", b"\xff\xfb" * 20_000)
    assert (await client.audio.transcriptions.create(model="whisper-1", file=sound)).text
    verbose = await client.audio.transcriptions.create(
        model="whisper-1", file=sound, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert verbose.duration == pytest.approx(2.5)
    assert verbose.segments[0].id == 0
    assert verbose.words[0].word
    assert isinstance(await client.audio.transcriptions.create(model="m", file=sound, response_format="text"), str)


async def test_models(client):
    assert "gpt-4o-mini" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("gpt-4o-mini")).id == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_errors(start, status, error):
    server = await start(faults={str(status): 100})
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as sdk:
        with pytest.raises(error, match="simulated"):
            await sdk.chat.completions.create(model="m", messages=MESSAGES)


async def test_its_retries_get_through_a_script(start):
    server = await start(retry_after_seconds=0.01)
    server.set_script(["429", "reset", "ok"])
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=2) as sdk:
        answer = await sdk.chat.completions.create(model="m", messages=MESSAGES)
    assert answer.choices
    assert server.stats.faults == {"429": 1, "reset": 1}
    assert server.stats.duplicates == 0


async def test_the_wrong_key(start):
    server = await start(api_key="right")
    async with openai.AsyncOpenAI(base_url=server.url, api_key="wrong", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.chat.completions.create(model="m", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"


async def test_broken_connections(start):
    server = await start()
    server.set_script(["reset", "truncated"])
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as sdk:
        for _ in range(2):
            with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
                await sdk.chat.completions.create(model="m", messages=MESSAGES)
