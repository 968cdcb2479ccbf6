"""A JSON value that fits a JSON schema, for tool arguments and structured output.

It covers what tool definitions are written with: types, enums, bounds, lengths, formats, references and
combinations. What cannot be met in general is met at best effort: a `pattern` is tried against a list of likely
strings, `not` and `if` are passed over.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from cli.simulate.grain import between, draw, fraction, words
from cli.simulate.schema_shape import Schema, plain_schema, type_of, weight

#: Below this depth only what is required is filled in, which is where recursive schemas end.
_SHALLOW = 4
#: And here even that stops: a schema that requires itself has no finite value.
_DEEPEST = 24
_SPAN = 100  # of a number without bounds

_FORMATS: Mapping[str, str] = {
    "date": "2025-06-15",
    "time": "12:30:00Z",
    "date-time": "2025-06-15T12:30:00Z",
    "duration": "PT30M",
    "email": "rehearsal@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
    "uri": "https://example.com/rehearsal",
    "url": "https://example.com/rehearsal",
    "uuid": "0f0e0d0c-0b0a-4908-8706-050403020100",
}
#: What patterns in tool definitions usually mean: codes, numbers, colours, telephones.
_LIKELY = (
    *_FORMATS.values(),
    "a",
    "A",
    "1",
    "abc",
    "ABC",
    "123",
    "12345",
    "a1",
    "AB-123",
    "1.0",
    "#a1b2c3",
    "+15550100",
)


def sample(schema: object, grain: bytes) -> Any:
    """One value for the schema, the same one for the same grain."""
    return _Sampler(schema, grain).value(schema, "$", 0)


class _Sampler:
    """Holds what references point into, and what the draws are made from."""

    def __init__(self, root: object, grain: bytes) -> None:
        self._root = root
        self._grain = grain

    def value(self, schema: object, path: str, depth: int) -> Any:
        if schema is False or depth > _DEEPEST:
            return None
        if not isinstance(schema, Mapping):
            return self._word(path)
        schema = plain_schema(schema, self._root, lambda options: self._branch(options, path, depth))
        if "const" in schema:
            return schema["const"]
        if options := schema.get("enum"):
            return options[draw(self._grain, path) % len(options)]
        kind = type_of(schema)
        if kind == "object":
            return self._object(schema, path, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        return self._scalar(kind, schema, path)

    def _branch(self, options: list[Any], path: str, depth: int) -> object:
        return min(options, key=weight) if depth >= _SHALLOW else options[draw(self._grain, path) % len(options)]

    def _object(self, schema: Schema, path: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        names = required if depth >= _SHALLOW else dict.fromkeys([*properties, *required])
        return {name: self.value(properties.get(name, {}), f"{path}.{name}", depth + 1) for name in names}

    def _array(self, schema: Schema, path: str, depth: int) -> list[Any]:
        leading = schema.get("prefixItems") or []
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        pleasant = len(leading) or 1 + draw(self._grain, path) % 2
        count = least if depth >= _SHALLOW else min(max(least, pleasant), most)
        found: list[Any] = []
        # More tries than items, because equal ones are dropped where they must differ.
        for at in range(int(count) * 8):
            if len(found) >= count:
                break
            item = self.value(leading[at] if at < len(leading) else schema.get("items"), f"{path}[{at}]", depth + 1)
            if not schema.get("uniqueItems") or item not in found:
                found.append(item)
        return found

    def _scalar(self, kind: str, schema: Schema, path: str) -> Any:
        if kind == "integer":
            return int(self._number(schema, path, step=1))
        if kind == "number":
            return self._number(schema, path, step=0)
        if kind == "boolean":
            return draw(self._grain, path) % 2 == 0
        return None if kind == "null" else self._string(schema, path)

    def _number(self, schema: Schema, path: str, *, step: float) -> float:
        multiple = float(schema.get("multipleOf") or step)
        low, high = _bounds(schema, margin=multiple or 1e-6)
        if multiple:
            first, last = math.ceil(low / multiple), math.floor(high / multiple)
            return between(self._grain, path, first, max(first, last)) * multiple
        drawn = low + fraction(self._grain, path) * (high - low)
        return min(high, max(low, round(drawn, 4)))

    def _string(self, schema: Schema, path: str) -> str:
        text = _FORMATS.get(str(schema.get("format")), "")
        if not text and "pattern" in schema:
            text = _likely_match(schema["pattern"])
        text = text or self._word(path)
        least = int(schema.get("minLength", 0))
        most = int(schema.get("maxLength", max(least, len(text))))
        return text.ljust(least, "x")[:most]

    def _word(self, path: str) -> str:
        return words(self._grain, path, 1)[0]


def _bounds(schema: Schema, *, margin: float) -> tuple[float, float]:
    """The least and the greatest number allowed, both finite."""
    low, high = float(schema.get("minimum", -math.inf)), float(schema.get("maximum", math.inf))
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    # Draft 4 has booleans here, beside the bound that they are about.
    if above is not None and above is not False:
        low = max(low, (low if above is True else float(above)) + margin)
    if below is not None and below is not False:
        high = min(high, (high if below is True else float(below)) - margin)
    if low == -math.inf:
        low = min(0.0, high - _SPAN)
    if high == math.inf:
        high = low + _SPAN
    return low, high


def _likely_match(pattern: object) -> str:
    try:
        compiled = re.compile(str(pattern))
    except re.error:
        return ""
    return next((text for text in _LIKELY if compiled.search(text)), "")
