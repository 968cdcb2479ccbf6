"""completions: the older text endpoint, which takes a prompt, a list of prompts, or their token numbers."""

from collections.abc import Sequence
from typing import Any

from cli.simulate import checks, sse
from cli.simulate.call import Call
from cli.simulate.grain import between, cut_to_tokens, prose, tokens_of
from cli.simulate.reply import Reply, Usage

_MOST_TOKENS = 10_000_000
_MOST_CHOICES = 128


def answer(call: Call) -> Reply:
    body = call.body
    prompts = _prompts(body.get("prompt"))
    checks.sampling(body)
    streams = checks.flag(body, "stream")
    echoes = checks.flag(body, "echo")
    limit = checks.integer(body, "max_tokens", low=0, high=_MOST_TOKENS)
    count = checks.integer(body, "n", low=1, high=_MOST_CHOICES) or 1
    choices: list[dict[str, Any]] = []
    written = 0
    for index in range(len(prompts) * count):
        text, finish = _text(call, index, limit)
        written += tokens_of(len(text))
        prompt = prompts[index // count]
        shown = prompt + text if echoes and isinstance(prompt, str) else text
        choices.append({"index": index, "text": shown, "logprobs": None, "finish_reason": finish})
    usage = Usage(sum(map(_prompt_tokens, prompts)), written)
    content = {
        "id": f"cmpl-{call.hex_id}",
        "object": "text.completion" if call.dialect == "together" else "text_completion",
        "created": call.created,
        "model": call.model,
    }
    if streams:
        return Reply(200, sse.EVENT_STREAM, events=_events(content, choices, usage), usage=usage)
    return Reply.of_json({**content, "choices": choices, "usage": usage.as_json()}, usage=usage)


def _text(call: Call, index: int, limit: int | None) -> tuple[str, str]:
    size = between(call.grain, f"size{index}", *call.answer_tokens)
    text = f" Rehearsal answer {call.hex_id[:8]}.{index}. {prose(call.grain, f'text{index}', size)}"
    for stop in checks.stops(call.body):
        text = text.partition(stop)[0]
    text, was_cut = cut_to_tokens(text, limit)
    return text, "length" if was_cut else "stop"


def _events(frame: dict[str, Any], choices: list[dict[str, Any]], usage: Usage) -> tuple[bytes, ...]:
    """Deltas have the shape of the whole answer here, unlike in chat."""
    events = []
    for choice in choices:
        parts = ({**choice, "text": piece, "finish_reason": None} for piece in sse.pieces(choice["text"]))
        events += [sse.event({**frame, "choices": [part]}) for part in parts]
        last = {**frame, "choices": [{**choice, "text": ""}]}
        events.append(sse.event({**last, "usage": usage.as_json()} if choice is choices[-1] else last))
    return (*events, sse.DONE)


def _prompts(prompt: object) -> Sequence[str | list[int]]:
    if prompt is None:
        raise checks.missing("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return prompt
        if all(isinstance(item, int) for item in prompt):
            return [prompt]
        if all(isinstance(item, list) for item in prompt):
            return prompt
    raise checks.wrong_type("prompt", "a string, an array of strings or an array of tokens", prompt)


def _prompt_tokens(prompt: str | list[int]) -> int:
    return tokens_of(len(prompt)) if isinstance(prompt, str) else len(prompt)
