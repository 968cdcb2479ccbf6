"""Tool calls: which of the offered functions is called, and with what."""

from collections.abc import Mapping
from typing import Any

import msgspec

from cli.simulate import checks, json_schema
from cli.simulate.grain import draw

_CHOICES = ("none", "auto", "required")

Function = Mapping[str, Any]


def chosen(body: Mapping[str, Any], grain: bytes) -> Function | None:
    """The function to call, or None where the answer is text.

    With "auto" a conversation that ends in a tool's result is answered in text: an agent must come to an end.
    """
    offered = body.get("tools")
    if offered is None:
        return None
    if not isinstance(offered, list):
        raise checks.wrong_type("tools", "an array of objects", offered)
    functions = {function["name"]: function for function in map(_function, offered, range(len(offered)))}
    wanted = body.get("tool_choice", "auto") or "auto"
    if isinstance(wanted, Mapping):
        named = wanted.get("function")
        name = named.get("name") if isinstance(named, Mapping) else wanted.get("name")
        if name not in functions:
            raise checks.wrong_value("tool_choice", f"the function '{name}' is not among the tools.")
        return functions[name]
    if wanted not in _CHOICES:
        raise checks.wrong_value("tool_choice", f"supported values are: {', '.join(_CHOICES)}, or a function.")
    last = body["messages"][-1]
    if not functions or wanted == "none" or (wanted == "auto" and last["role"] in ("tool", "function")):
        return None
    return list(functions.values())[draw(grain, "tool") % len(functions)]


def arguments(function: Function, grain: bytes) -> str:
    """JSON that fits the function's parameters."""
    parameters = function.get("parameters") or {"type": "object"}
    return msgspec.json.encode(json_schema.sample(parameters, grain)).decode()


def _function(tool: object, at: int) -> Function:
    where = f"tools[{at}]"
    if not isinstance(tool, Mapping):
        raise checks.wrong_type(where, "an object", tool)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise checks.missing(f"{where}.function")
    if not isinstance(function.get("name"), str):
        raise checks.missing(f"{where}.function.name")
    return function
