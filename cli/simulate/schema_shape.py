"""What a JSON schema comes to once its references are followed and its combinations merged."""

from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_MOST_STEPS = 24
_COMBINATIONS = ("anyOf", "oneOf")
_CONTAINERS = ("object", "array")


def plain_schema(schema: Schema, root: object, choose: Callable[[list[Any]], object]) -> Schema:
    """The schema without $ref, allOf, anyOf and oneOf; `choose` picks the branch of the last two."""
    for _ in range(_MOST_STEPS):
        if "$ref" in schema:
            schema = _merged(_without(schema, "$ref"), _pointed(root, schema["$ref"]))
        elif "allOf" in schema:
            parts, schema = schema["allOf"], _without(schema, "allOf")
            for part in parts:
                schema = _merged(schema, part)
        elif options := schema.get("anyOf") or schema.get("oneOf"):
            schema = _merged(_without(schema, *_COMBINATIONS), choose(options))
        else:
            break
    return schema


def type_of(schema: Schema) -> str:
    """Its type; where none is named, what its keywords are about."""
    named = schema.get("type")
    if isinstance(named, list):
        return next((name for name in named if name != "null"), "null")
    if isinstance(named, str):
        return named
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def weight(schema: object) -> int:
    """How far a branch is from its end: constants before numbers and strings, and those before containers."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return 0
    kind = type_of(schema)
    if kind in _CONTAINERS or "$ref" in schema:
        return 2
    return 0 if kind == "null" else 1


def _pointed(root: object, reference: object) -> object:
    """What a reference of the form #/$defs/Name points at; anything goes where it points outside."""
    target = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        target = target.get(name) if isinstance(target, Mapping) else None
    return target


def _merged(one: Schema, other: object) -> dict[str, Any]:
    if not isinstance(other, Mapping):
        return dict(one)
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    return merged


def _without(schema: Schema, *names: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name not in names}
