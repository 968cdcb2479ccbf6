"""What is asked and what is answered: chat bodies of about 450 bytes, and lines of about 500 bytes that hold them."""

import json
import random
from pathlib import Path

MODEL = "bench/model"
PATH = "/v1/chat/completions"

_TEXT = """\
the mill turns grain into flour and water into work while a patient miller counts sacks of rye wheat barley and oats
that came by cart over the hill from farms where the harvest was late because rain fell for nine days
"""
_POOL_CHARACTERS = 100_000
#: Characters of a prompt, so that a body has about 450 bytes.
_PROMPT = 300


def _pool() -> str:
    vocabulary = _TEXT.split()
    rng = random.Random(7)  # noqa: S311 - the same prompts every time
    words: list[str] = []
    length = 0
    while length < _POOL_CHARACTERS:
        words.append(rng.choice(vocabulary))
        length += len(words[-1]) + 1
    return " ".join(words)


def _body(prompt: str) -> str:
    return (
        f'{{"model": "{MODEL}", "messages": [{{"role": "system", "content": "You answer in one short sentence."}}, '
        f'{{"role": "user", "content": "{prompt}"}}], "max_tokens": 200, "temperature": 0.7}}'
    )


def body() -> bytes:
    """One chat body."""
    return _body(_pool()[:_PROMPT]).encode()


def messages() -> list[dict[str, str]]:
    """The messages of `body`, for clients that write the body themselves."""
    found: list[dict[str, str]] = json.loads(body())["messages"]
    return found


def write_lines(path: Path, count: int) -> int:
    """A file of `count` OpenAI batch lines, all different; returns its size in bytes."""
    pool = _pool()
    span = len(pool) - _PROMPT
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        for number in range(count):
            start = number * 7919 % span
            text = _body(pool[start : start + _PROMPT])
            file.write(f'{{"custom_id": "j{number:07}", "method": "POST", "url": "{PATH}", "body": {text}}}\n')
    return path.stat().st_size


#: What every endpoint of the bench answers: a small completion with its token counts.
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The mill turns for as long as the water runs."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 12, "total_tokens": 102},
    }
).encode()
