"""Bad requests are refused with the status, the parameter and the words that SDKs and people look for."""

import pytest

HI = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": 7, "messages": [HI]}, "model", "invalid_type"),
        ({"model": "", "messages": [HI]}, "model", "invalid_value"),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"model": "m", "messages": "Hi"}, "messages", "invalid_type"),
        ({"model": "m", "messages": []}, "messages", "invalid_value"),
        ({"model": "m", "messages": ["Hi"]}, "messages[0]", "invalid_type"),
        ({"model": "m", "messages": [HI, {"content": "x"}]}, "messages[1].role", "missing_required_parameter"),
        ({"model": "m", "messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"model": "m", "messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"model": "m", "messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"model": "m", "messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "invalid_type"),
        (
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].image_url.url",
            "missing_required_parameter",
        ),
        (
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "smell"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"model": "m", "messages": [HI], "temperature": 3}, "temperature", "integer_above_max_value"),
        ({"model": "m", "messages": [HI], "temperature": "hot"}, "temperature", "invalid_type"),
        ({"model": "m", "messages": [HI], "top_p": -0.1}, "top_p", "decimal_below_min_value"),
        ({"model": "m", "messages": [HI], "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"model": "m", "messages": [HI], "max_tokens": True}, "max_tokens", "invalid_type"),
        ({"model": "m", "messages": [HI], "n": 1.5}, "n", "invalid_type"),
        ({"model": "m", "messages": [HI], "stream": "yes"}, "stream", "invalid_type"),
        ({"model": "m", "messages": [HI], "stop": 3}, "stop", "invalid_type"),
        ({"model": "m", "messages": [HI], "tools": {}}, "tools", "invalid_type"),
        ({"model": "m", "messages": [HI], "tools": [{}]}, "tools[0].function", "missing_required_parameter"),
        ({"model": "m", "messages": [HI], "response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ],
)
async def test_chat(start, http, body, param, code):
    server = await start()
    answer = await http.post(f"{server.url}/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert server.stats.answered == {400: 1}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/completions", {}, "prompt"),
        ("/completions", {"prompt": []}, "prompt"),
        ("/completions", {"prompt": [1, "a"]}, "prompt"),
        ("/embeddings", {}, "input"),
        ("/embeddings", {"input": ""}, "input"),
        ("/embeddings", {"input": [1, "a"]}, "input"),
        ("/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/rerank", {"documents": ["a"]}, "query"),
        ("/rerank", {"query": "a"}, "documents"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": [1]}, "documents[0]"),
        ("/images/generations", {}, "prompt"),
        ("/images/generations", {"prompt": "a", "width": 100_000}, "width"),
        ("/images/generations", {"prompt": "a", "size": "big"}, "size"),
        ("/audio/speech", {"input": "a"}, "voice"),
        ("/audio/speech", {"input": "a", "voice": "v", "response_format": "midi"}, "response_format"),
    ],
)
async def test_other_kinds(start, http, path, body, param):
    server = await start()
    answer = await http.post(f"{server.url}{path}", json={"model": "m"} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"model": NaN}', b"\xff\xfe", b"[" * 100_000])
async def test_what_is_no_json_object(start, http, content):
    server = await start()
    answer = await http.post(f"{server.url}/chat/completions", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_json", "invalid_type")


async def test_a_wrong_key(start, http, chat):
    server = await start(api_key="right")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}):
        for answer in (
            await http.post(f"{server.url}/chat/completions", json=chat(), headers=headers),
            await http.get(f"{server.url}/models", headers=headers),
        ):
            assert answer.status_code == 401
            error = answer.json()["error"]
            assert error.pop("message").startswith("Invalid API key provided")
            assert error == {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    right = {"authorization": "bearer right"}
    assert (await http.post(f"{server.url}/chat/completions", json=chat(), headers=right)).status_code == 200


async def test_a_model_that_is_not_served(start, http, chat):
    server = await start(models=("MiniMaxAI/*", "exact"))
    answer = await http.post(f"{server.url}/chat/completions", json=chat() | {"model": "MiniMax/other"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_available"
    assert error["message"].startswith(
        "Unable to access model MiniMax/other. Please visit https://api.together.ai/models"
    )
    for model in ("MiniMaxAI/any", "exact"):
        assert (await http.post(f"{server.url}/chat/completions", json=chat() | {"model": model})).status_code == 200


async def test_paths_and_methods_that_are_none(start, http):
    server = await start()
    assert (await http.post(f"{server.url}/chat/completion", json={})).status_code == 404
    assert (await http.get(f"{server.origin}/")).json()["error"]["message"] == "Invalid URL (GET /)"
    assert (await http.get(f"{server.url}/chat/completions")).status_code == 405
    assert (await http.get(f"{server.url}/v1/chat/completions")).status_code == 405
    assert (await http.post(f"{server.url}/models")).status_code == 405
    assert server.stats.answered == {404: 2, 405: 3}
    assert server.stats.by_path["(unknown)"] == 2


async def test_every_answer_has_an_id_of_its_own(start, http, chat):
    server = await start()
    answers = [
        await http.post(f"{server.url}/chat/completions", json=chat()),
        await http.post(f"{server.url}/chat/completions", json={}),
        await http.get(f"{server.url}/nowhere"),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


async def test_more_at_once_than_allowed(start, http, chat, until):
    import asyncio  # noqa: PLC0415 - this test alone holds calls

    server = await start(max_concurrency=2, latency_seconds=(30, 30))
    held = [asyncio.create_task(http.post(f"{server.url}/chat/completions", json=chat(str(n)))) for n in range(2)]
    await until(lambda: server.stats.in_flight == 2)
    refused = await http.post(f"{server.url}/chat/completions", json=chat())
    assert refused.status_code == 429
    assert "2 concurrent requests" in refused.json()["error"]["message"]
    assert server.stats.peak_in_flight == 2
    for task in held:
        task.cancel()
