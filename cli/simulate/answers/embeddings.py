"""embeddings: unit vectors by (seed, model, text) only, so that equal texts are equal wherever they come."""

import base64
import hashlib
import math
from array import array
from collections.abc import Sequence

from cli.simulate import checks
from cli.simulate.call import Call
from cli.simulate.grain import grain_of, tokens_of
from cli.simulate.reply import Reply, Usage

_DIMENSIONS = 768
_MOST_DIMENSIONS = 8192
_MOST_INPUTS = 2048
#: A byte as a number between -1 and 1, never 0: a vector of zeros has no direction.
_LEVELS = tuple((level - 127.5) / 127.5 for level in range(256))


def answer(call: Call) -> Reply:
    body = call.body
    inputs = _inputs(body.get("input"))
    size = checks.integer(body, "dimensions", low=1, high=_MOST_DIMENSIONS) or _DIMENSIONS
    packed = checks.one_of(body, "encoding_format", ("float", "base64")) == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _embedding(call, item, size, packed=packed)}
        for index, item in enumerate(inputs)
    ]
    usage = Usage(sum(tokens_of(len(item)) if isinstance(item, str) else len(item) for item in inputs))
    counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
    return Reply.of_json({"object": "list", "data": data, "model": call.model, "usage": counts}, usage=usage)


def _embedding(call: Call, item: str | list[int], size: int, *, packed: bool) -> str | list[float]:
    text = item if isinstance(item, str) else ",".join(map(str, item))
    numbers = unit_vector(grain_of(call.seed, "embedding", call.model.encode(), b"\0", text.encode()), size)
    # Little-endian 32-bit floats are what the SDKs unpack; array() is that on every machine Python is built for today.
    return base64.b64encode(array("f", numbers)).decode() if packed else numbers


def unit_vector(grain: bytes, size: int) -> list[float]:
    levels = [_LEVELS[byte] for byte in hashlib.shake_128(grain).digest(size)]
    length = math.sqrt(sum(level * level for level in levels))
    return [level / length for level in levels]


def _inputs(value: object) -> Sequence[str | list[int]]:
    if value is None:
        raise checks.missing("input")
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and listed and all(isinstance(item, int) for item in listed):
        listed = [listed]
    if not isinstance(listed, list) or not all(isinstance(item, str | list) for item in listed):
        raise checks.wrong_type("input", "a string, an array of strings or an array of tokens", value)
    if not all(listed) or not 1 <= len(listed) <= _MOST_INPUTS:
        raise checks.wrong_value("input", f"it must hold 1 to {_MOST_INPUTS} inputs, none of them empty.")
    return listed
