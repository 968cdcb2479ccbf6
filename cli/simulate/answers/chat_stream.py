"""chat/completions as a stream: the same choices, in word-sized deltas."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.simulate import checks, sse
from cli.simulate.answers.choice import Choice
from cli.simulate.call import Call
from cli.simulate.reply import Reply, Usage


def reply(call: Call, choices: Sequence[Choice], usage: Usage) -> Reply:
    events = (*_events(call, choices, usage), sse.DONE)
    return Reply(200, sse.EVENT_STREAM, events=events, usage=usage)


def _events(call: Call, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
    options = call.body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise checks.wrong_type("stream_options", "an object", options)
    counts_wanted = options is not None and checks.flag(options, "include_usage")
    frame: dict[str, Any] = {
        "id": f"chatcmpl-{call.hex_id}",
        "object": "chat.completion.chunk",
        "created": call.created,
        "model": call.model,
    }
    # OpenAI sends the usage after the last choice, in a chunk of its own, and null until then.
    # Together sends it with the last choice, asked or not; its SDK users read it there.
    beside = {"usage": None} if counts_wanted else {}
    for choice in choices:
        for delta in _deltas(choice):
            yield sse.event({**frame, "choices": [_part(choice, delta, None)], **beside})
        last = {**frame, "choices": [_part(choice, {}, choice.finish_reason)], **beside}
        if call.dialect == "together" and choice is choices[-1]:
            last["usage"] = usage.as_json()
        yield sse.event(last)
    if counts_wanted and call.dialect != "together":
        yield sse.event({**frame, "choices": [], "usage": usage.as_json()})


def _part(choice: Choice, delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    if choice.tool_call is None:
        yield {"role": "assistant", "content": ""}
        for piece in sse.pieces(choice.content or ""):
            yield {"content": piece}
        return
    function = choice.tool_call["function"]
    opening = {**choice.tool_call, "index": 0, "function": {"name": function["name"], "arguments": ""}}
    yield {"role": "assistant", "content": None, "tool_calls": [opening]}
    for piece in sse.pieces(function["arguments"]):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
