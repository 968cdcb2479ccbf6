"""The Together SDK, with its base URL given as version 3 wants it and as earlier versions did."""

import pytest

together = pytest.importorskip("together", reason="the Together SDK is not among the development tools")

MESSAGES = [{"role": "user", "content": "How far is the mill?"}]
MODEL = "MiniMaxAI/MiniMax-M1-40k"


@pytest.fixture(params=["origin", "url"])
async def client(start, request):
    """Version 3 appends /v1 to whatever it is given; both have to work."""
    server = await start(api_key="key")
    async with together.AsyncTogether(base_url=getattr(server, request.param), api_key="key", max_retries=0) as sdk:
        yield sdk


async def test_chat(client):
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=1.0, top_p=0.95)
    assert answer.choices[0].message.content.startswith("<think>\n")
    assert answer.usage.total_tokens > 0


async def test_chat_stream(client):
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("<think>\n")
    assert chunks[-1].usage.total_tokens > 0


async def test_vision_and_tools(client):
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/mill.png"}},
    ]
    tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": parts}], tools=[tool], tool_choice="auto"
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "go"


async def test_completions(client):
    answer = await client.completions.create(
        model=MODEL, prompt="Once", max_tokens=32, temperature=0.7, safety_model="meta-llama/Llama-Guard-4-12B"
    )
    assert answer.object == "text.completion"
    assert answer.choices[0].text


async def test_embeddings(client):
    answer = await client.embeddings.create(model="BAAI/bge-base-en-v1.5", input="mill")
    assert len(answer.data[0].embedding) == 768


async def test_rerank(client):
    answer = await client.rerank.create(
        model="Salesforce/Llama-Rank-V1", query="river mill", documents=["stable", "mill by the river"], top_n=1
    )
    assert (answer.results[0].index, answer.object) == (1, "rerank")


async def test_images(client):
    answer = await client.images.generate(
        model="flux", prompt="A mill", width=256, height=128, response_format="base64"
    )
    assert answer.data[0].b64_json.startswith("iVBOR")
    linked = await client.images.generate(model="flux", prompt="A mill", n=2, steps=4)
    assert linked.data[1].url.endswith(".png")


async def test_speech(client):
    answer = await client.audio.speech.create(model="cartesia/sonic", input="The mill.", voice="friendly", stream=False)
    assert (await answer.read()).startswith(b"RIFF")
    stream = await client.audio.speech.create(model="cartesia/sonic", input="The mill.", voice="friendly", stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].object == "audio.tts.chunk"
    assert chunks[0].b64


async def test_transcriptions(client):
    sound = ("mill.mp3", b"\xff\xfb" * 20_000)
    assert (await client.audio.transcriptions.create(model="openai/whisper-large-v3", file=sound)).text
    verbose = await client.audio.transcriptions.create(
        model="openai/whisper-large-v3", file=sound, response_format="verbose_json", timestamp_granularities="word"
    )
    assert verbose.words[0].word
    assert (await client.audio.translations.create(model="openai/whisper-large-v3", file=sound)).text


async def test_a_model_that_is_not_served(start):
    server = await start(models=("other/*",))
    async with together.AsyncTogether(base_url=server.origin, api_key="k", max_retries=0) as sdk:
        with pytest.raises(together.NotFoundError, match="Unable to access model MiniMaxAI/MiniMax-M1-40k"):
            await sdk.chat.completions.create(model=MODEL, messages=MESSAGES)
