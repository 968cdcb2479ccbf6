"""chat/completions: text, thoughts, tool calls and structured output, whole or streamed."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cli.simulate import checks
from cli.simulate.answers import chat_stream, tools
from cli.simulate.answers.choice import Choice
from cli.simulate.answers.messages import prompt_tokens
from cli.simulate.answers.structured import structured_text
from cli.simulate.call import Call
from cli.simulate.grain import between, cut_to_tokens, draw, prose, tokens_of
from cli.simulate.reply import Reply, Usage

#: M1, R1 and QwQ as words of a name (gemma1 is none), and whatever says that it thinks.
_REASONERS = re.compile(r"(?<![a-z0-9])(?:m1|r1|qwq)(?![a-z0-9])|think", re.IGNORECASE)
_MOST_TOKENS = 10_000_000
_MOST_CHOICES = 128
#: A thought is so many times as long as its answer.
_THOUGHT_LENGTHS = 3


def answer(call: Call) -> Reply:
    body = call.body
    in_prompt = prompt_tokens(body)
    checks.sampling(body)
    streams = checks.flag(body, "stream")
    count = checks.integer(body, "n", low=1, high=_MOST_CHOICES) or 1
    limit = _token_limit(body)
    choices = [_choice(call, index, limit) for index in range(count)]
    usage = Usage(
        in_prompt,
        sum(choice.completion_tokens for choice in choices),
        sum(choice.reasoning_tokens for choice in choices),
    )
    if streams:
        return chat_stream.reply(call, choices, usage)
    content = {
        "id": f"chatcmpl-{call.hex_id}",
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [choice.as_message() for choice in choices],
        "usage": usage.as_json(),
    }
    return Reply.of_json(content, usage=usage)


@lru_cache(maxsize=256)
def reasons(model: str) -> bool:
    """Whether a model of this name thinks aloud before it answers."""
    return _REASONERS.search(model) is not None


def _choice(call: Call, index: int, limit: int | None) -> Choice:
    tool = tools.chosen(call.body, call.grain) if "tools" in call.body else None
    if tool is not None:
        arguments, was_cut = cut_to_tokens(tools.arguments(tool, call.grain + b"%d" % index), limit)
        tool_call = {
            "id": f"call_{draw(call.grain, f'call{index}'):016x}",
            "type": "function",
            "function": {"name": tool["name"], "arguments": arguments},
        }
        return Choice(index, None, tool_call, "length" if was_cut else "tool_calls", tokens_of(len(arguments)))
    thought = ""
    text = structured_text(call, index)
    if text is None:
        size = between(call.grain, f"size{index}", *call.answer_tokens)
        thought = _thought(call, index, size)
        text = f"Rehearsal answer {call.hex_id[:8]}.{index}. {prose(call.grain, f'text{index}', size)}"
        for stop in checks.stops(call.body):
            text = text.partition(stop)[0]
    whole, was_cut = cut_to_tokens(thought + text, limit)
    finish = "length" if was_cut else "stop"
    return Choice(index, whole, None, finish, tokens_of(len(whole)), tokens_of(min(len(thought), len(whole))))


def _thought(call: Call, index: int, size: int) -> str:
    """What a reasoning model writes before its answer, tags and all."""
    wanted = call.body.get("reasoning")
    if not reasons(call.model) or (isinstance(wanted, Mapping) and wanted.get("enabled") is False):
        return ""
    return f"<think>\n{prose(call.grain, f'thought{index}', size * _THOUGHT_LENGTHS)}\n</think>\n\n"


def _token_limit(body: Mapping[str, Any]) -> int | None:
    newer = checks.integer(body, "max_completion_tokens", low=1, high=_MOST_TOKENS)
    older = checks.integer(body, "max_tokens", low=1, high=_MOST_TOKENS)
    return older if newer is None else newer
