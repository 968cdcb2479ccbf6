"""Bad requests are refused as OpenAI refuses them: 400, with the parameter's name where an SDK looks for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cli.simulate.reply import Refusal

_JSON_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def json_name(value: object) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)


def missing(param: str) -> Refusal:
    return Refusal(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: object) -> Refusal:
    message = f"Invalid type for '{param}': expected {expected}, but got {json_name(value)} instead."
    return Refusal(400, message, param=param, code="invalid_type")


def wrong_value(param: str, because: str) -> Refusal:
    return Refusal(400, f"Invalid value for '{param}': {because}", param=param, code="invalid_value")


def text(body: Mapping[str, Any], param: str) -> str:
    """A required, non-empty string."""
    value = body.get(param)
    if value is None:
        raise missing(param)
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if not value:
        raise wrong_value(param, "it must not be empty.")
    return value


def flag(body: Mapping[str, Any], param: str, *, default: bool = False) -> bool:
    value = body.get(param)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong_type(param, "a boolean", value)
    return value


def integer(body: Mapping[str, Any], param: str, *, low: int, high: int) -> int | None:
    value = body.get(param)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(param, "an integer", value)
    _check_bounds(param, value, low, high)
    return value


def number(body: Mapping[str, Any], param: str, *, low: float, high: float) -> float | None:
    value = body.get(param)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(param, "a number", value)
    _check_bounds(param, value, low, high)
    return float(value)


def one_of(body: Mapping[str, Any], param: str, choices: Sequence[str]) -> str | None:
    value = body.get(param)
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if value not in choices:
        raise wrong_value(param, f"'{value}' is not supported here. Supported values are: {', '.join(choices)}.")
    return value


def sampling(body: Mapping[str, Any]) -> None:
    """The knobs that change nothing here, but that a real endpoint would refuse when they are turned too far."""
    number(body, "temperature", low=0, high=2)
    number(body, "top_p", low=0, high=1)
    number(body, "frequency_penalty", low=-2, high=2)
    number(body, "presence_penalty", low=-2, high=2)


def stops(body: Mapping[str, Any]) -> list[str]:
    value = body.get("stop")
    listed = [value] if isinstance(value, str) else value or []
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise wrong_type("stop", "a string or an array of strings", value)
    return [item for item in listed if item]


def _check_bounds(param: str, value: float, low: float, high: float) -> None:
    if value < low:
        code, bound, sign, edge = "below_min_value", "below minimum", ">=", low
    elif value > high:
        code, bound, sign, edge = "above_max_value", "above maximum", "<=", high
    else:
        return
    kind = "integer" if isinstance(value, int) else "decimal"
    message = f"Invalid '{param}': {kind} {bound} value. Expected a value {sign} {edge}, but got {value} instead."
    raise Refusal(400, message, param=param, code=f"{kind}_{code}")
