"""images/generations: pictures of the asked size and number, as base64 or behind URLs that lead back here.

They are PNG whatever `output_format` says: the endpoint's answer does not name a format, and PNG is what decoders
need no hint for.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

from cli.simulate import checks
from cli.simulate.answers.png import MOST_PIXELS_A_SIDE, draw_png, name_of
from cli.simulate.call import Call
from cli.simulate.grain import grain_of, tokens_of
from cli.simulate.reply import Reply, Usage

FILES_PATH = "/v1/simulated-files/"

_SIZE = re.compile(r"(\d{1,4})x(\d{1,4})")
_PIXELS_A_SIDE = 1024
_MOST_IMAGES = 16


def answer(call: Call) -> Reply:
    body = call.body
    prompt = checks.text(body, "prompt")
    count = checks.integer(body, "n", low=1, high=_MOST_IMAGES) or 1
    width, height = _size(body)
    asked = checks.one_of(body, "response_format", ("url", "base64", "b64_json"))
    data = [_image(call, index, width, height, as_url=asked in (None, "url")) for index in range(count)]
    usage = Usage(tokens_of(len(prompt)))
    content = {"id": call.hex_id, "object": "list", "created": call.created, "model": call.model, "data": data}
    return Reply.of_json(content, usage=usage)


def _image(call: Call, index: int, width: int, height: int, *, as_url: bool) -> dict[str, Any]:
    grain = grain_of(call.seed, "image", call.grain, b"%d" % index)
    if as_url:
        return {
            "index": index,
            "type": "url",
            "url": f"{call.headers.origin}{FILES_PATH}{name_of(grain, width, height)}",
        }
    encoded = base64.b64encode(draw_png(grain, width, height)).decode()
    return {"index": index, "type": "b64_json", "b64_json": encoded}


def _size(body: Mapping[str, Any]) -> tuple[int, int]:
    """Together asks for width and height, OpenAI for "1024x768"."""
    default = (_PIXELS_A_SIDE, _PIXELS_A_SIDE)
    if (size := body.get("size")) not in (None, "auto"):
        match = _SIZE.fullmatch(size) if isinstance(size, str) else None
        if match is None:
            raise checks.wrong_value("size", "give it as WIDTHxHEIGHT, such as 1024x768, or as auto.")
        default = (int(match[1]), int(match[2]))
    sides = {"width": default[0], "height": default[1]} | {k: body[k] for k in ("width", "height") if body.get(k)}
    checked = [checks.integer(sides, side, low=1, high=MOST_PIXELS_A_SIDE) or 1 for side in ("width", "height")]
    return checked[0], checked[1]
