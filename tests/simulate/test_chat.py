"""chat/completions and completions on the wire: texts, thoughts, tools, structure, limits of length, streams."""

import json

import pytest

from cli.simulate.answers.chat import reasons

REASONER = "MiniMaxAI/MiniMax-M1-40k"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_distance",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string"}, "unit": {"enum": ["km", "mile"]}},
            "required": ["to", "unit"],
        },
    },
}
OTHER_TOOL = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture
async def ask(start, http):
    """Posts a body to a fresh server and returns the JSON answered with 200."""
    server = await start()

    async def post(body, path="/chat/completions"):
        answer = await http.post(f"{server.url}{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    post.server = server
    return post


@pytest.fixture
async def stream(start, http):
    """Posts a body to a fresh server and returns the events before [DONE]."""
    server = await start()

    async def post(body, path="/chat/completions", **headers):
        answer = await http.post(f"{server.url}{path}", json=body | {"stream": True}, headers=headers)
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    return post


async def test_a_text(ask, chat):
    answer = await ask(chat())
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "test/plain"
    choice = answer["choices"][0]
    assert choice["message"]["content"].startswith(f"Rehearsal answer {answer['id'][9:17]}.0. ")
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == -(-len(choice["message"]["content"]) // 4)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_answers_depend_on_body_and_seed_alone(start, http, chat):
    one, twin, other = await start(seed=1), await start(seed=1), await start(seed=2)
    answers = [
        (await http.post(f"{server.url}/chat/completions", json=chat())).content for server in (one, twin, other)
    ]
    assert answers[0] == answers[1] != answers[2]
    different = await http.post(f"{one.url}/chat/completions", json=chat("And the stable?"))
    assert different.json()["choices"] != json.loads(answers[0])["choices"]


async def test_prompt_tokens_grow_with_the_prompt(ask, chat):
    short, long = [(await ask(chat("word " * count)))["usage"]["prompt_tokens"] for count in (10, 1000)]
    assert long - short == pytest.approx(5 * 990 / 4, abs=2)


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        (REASONER, True),
        ("deepseek-ai/DeepSeek-R1-0528", True),
        ("Qwen/QwQ-32B", True),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", True),
        ("google/gemma1-2b", False),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", False),
    ],
)
async def test_which_models_think(ask, chat, model, thinks):
    assert reasons(model) is thinks
    answer = await ask(chat() | {"model": model})
    content = answer["choices"][0]["message"]["content"]
    thought, end, rest = content.rpartition("</think>\n\n")
    assert (bool(end), thought.startswith("<think>\n")) == (thinks, thinks)
    assert rest.startswith("Rehearsal answer")
    details = answer["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == pytest.approx(len(thought + end) / 4, abs=1)


async def test_thinking_can_be_turned_off(ask, chat):
    answer = await ask(chat(reasoning={"enabled": False}) | {"model": REASONER})
    assert "<think>" not in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_length_limit_cuts(ask, chat, name):
    answer = await ask(chat(**{name: 7}) | {"model": REASONER})
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7
    assert "</think>" not in answer["choices"][0]["message"]["content"]


async def test_n_answers_differ(ask, chat):
    choices = (await ask(chat(n=3)))["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 3


async def test_stops_end_the_text(ask, chat):
    answer = await ask(chat(stop=["answer", "zzz"]))
    assert answer["choices"][0]["message"]["content"] == "Rehearsal "


async def test_images_are_content(ask, chat):
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    with_image = (await ask(chat(parts)))["usage"]["prompt_tokens"]
    without = (await ask(chat(parts[:1])))["usage"]["prompt_tokens"]
    assert with_image - without == 85


async def test_a_tool_is_called_with_fitting_arguments(ask, chat):
    choice = (await ask(chat(tools=[TOOL])))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    call = choice["message"]["tool_calls"][0]
    assert (call["type"], call["function"]["name"]) == ("function", "get_distance")
    arguments = json.loads(call["function"]["arguments"])
    assert set(arguments) == {"to", "unit"}
    assert arguments["unit"] in ("km", "mile")


async def test_tool_choice(ask, chat):
    async def called(**others):
        message = (await ask(chat(tools=[TOOL, OTHER_TOOL], **others)))["choices"][0]["message"]
        return message["tool_calls"][0]["function"]["name"] if "tool_calls" in message else None

    assert await called(tool_choice="none") is None
    assert await called(tool_choice="required") in ("get_distance", "get_time")
    for name in ("get_distance", "get_time"):
        assert await called(tool_choice={"type": "function", "function": {"name": name}}) == name


async def test_a_tools_result_is_answered_in_text(ask, chat):
    call = (await ask(chat(tools=[TOOL])))["choices"][0]["message"]
    messages = [*chat()["messages"], call, {"role": "tool", "tool_call_id": "x", "content": "3 km"}]
    assert (await ask(chat(tools=[TOOL]) | {"messages": messages}))["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("response_format", "keys"),
    [
        ({"type": "json_object"}, {"answer", "tags", "confidence"}),
        ({"type": "json_object", "schema": TOOL["function"]["parameters"]}, {"to", "unit"}),
        (
            {"type": "json_schema", "json_schema": {"name": "d", "schema": TOOL["function"]["parameters"]}},
            {"to", "unit"},
        ),
    ],
)
@pytest.mark.parametrize("model", ["test/plain", REASONER])
async def test_structured_output_is_json(ask, chat, response_format, keys, model):
    answer = await ask(chat(response_format=response_format) | {"model": model})
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == keys


async def test_a_stream_adds_up_to_the_answer(stream, chat):
    events = await stream(chat(n=2) | {"model": REASONER})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    texts, ends = {0: "", 1: ""}, {}
    for event in events:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert ends == {0: "stop", 1: "stop"}
    assert all("</think>\n\nRehearsal answer" in text for text in texts.values())
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("usage" not in event for event in events)


async def test_usage_comes_last_in_a_stream_when_asked_for(stream, chat):
    *events, last = await stream(chat(stream_options={"include_usage": True}))
    assert {event["usage"] for event in events} == {None}
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0


async def test_together_has_usage_with_the_last_choice(stream, chat):
    *events, last = await stream(chat(), **{"user-agent": "Together/Python 3.1.1"})
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] > 0
    assert not [event for event in events if "usage" in event]


async def test_tool_calls_stream(stream, chat):
    events = await stream(chat(tools=[TOOL]))
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[:-1]]
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["function"] == {"name": "get_distance", "arguments": ""}
    assert set(json.loads("".join(call["function"]["arguments"] for call in calls))) == {"to", "unit"}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_held_stream_is_spread_over_its_latency(start, http, chat):
    server = await start(latency_seconds=(0.2, 0.2))
    body = chat(stream=True)
    async with http.stream("POST", f"{server.url}/chat/completions", json=body) as answer:
        chunks = [chunk async for chunk in answer.aiter_raw()]
    assert len(chunks) > 3
    assert chunks[-1].endswith(b"data: [DONE]\n\n")


async def test_completions(ask):
    answer = await ask({"model": "m", "prompt": "Once", "safety_model": "guard", "max_tokens": 9}, "/completions")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"].startswith(" Rehearsal answer")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 9


async def test_completions_of_several_prompts(ask):
    answer = await ask({"model": "m", "prompt": ["one", "two"], "n": 2, "echo": True}, "/completions")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in answer["choices"]] == ["one", "one", "two", "two"]
    tokens = await ask({"model": "m", "prompt": [[1, 2, 3], [4]]}, "/completions")
    assert tokens["usage"]["prompt_tokens"] == 4


async def test_completions_stream(stream):
    events = await stream({"model": "m", "prompt": "Once"}, "/completions")
    assert "".join(event["choices"][0]["text"] for event in events).startswith(" Rehearsal answer")
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["total_tokens"] > 0


async def test_a_doubled_v1_is_the_same_place(ask, chat):
    assert await ask(chat(), "/v1/chat/completions") == await ask(chat())
    assert ask.server.stats.by_path == {"/v1/chat/completions": 2}
