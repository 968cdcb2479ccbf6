"""Sampled values fit their schemas: looked at keyword by keyword, over many grains."""

import re

import pytest

from cli.simulate.json_schema import sample

GRAINS = [bytes([number]) * 16 for number in range(25)]


def fits(schema, value) -> bool:
    if "const" in schema:
        return value == schema["const"]
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            required = schema.get("required", ())
            properties = schema["properties"]
            return set(required) <= set(value) and all(fits(properties[name], value[name]) for name in value)
        case "array":
            size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
            return size and all(fits(schema["items"], item) for item in value)
        case "integer":
            return isinstance(value, int) and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "number":
            return schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and re.search(schema.get("pattern", ""), value) is not None
    raise AssertionError(schema)


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "threshold": {"type": "number", "minimum": -0.5, "maximum": 0.5},
        "alerts": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 4},
        "kind": {"const": "weather"},
        "code": {"type": "string", "pattern": r"^[A-Z]{2}-\d+$"},
    },
    "required": ["city", "days"],
}


@pytest.mark.parametrize("grain", GRAINS)
def test_a_tools_parameters(grain):
    value = sample(WEATHER, grain)
    assert fits(WEATHER, value)
    assert set(value) == set(WEATHER["properties"])
    assert value == sample(WEATHER, grain)


@pytest.mark.parametrize(
    ("schema", "allowed"),
    [
        ({"type": "integer", "multipleOf": 5, "minimum": 11, "maximum": 24}, {15, 20}),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4}, {2, 3}),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 2}, {2}),
        ({"type": "integer", "maximum": -5}, range(-105, -4)),
        ({"type": ["null", "boolean"]}, {True, False}),
        ({"type": "null"}, {None}),
        ({"anyOf": [{"const": 1}, {"const": "a"}]}, {1, "a"}),
        ({"oneOf": [{"type": "null"}, {"enum": [3]}]}, {None, 3}),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]}, {3, 4}),
        ({"$ref": "#/$defs/A~1B", "$defs": {"A/B": {"const": 8}}}, {8}),
        ({"type": "string", "format": "date"}, {"2025-06-15"}),
        ({"type": "string", "minLength": 2, "maxLength": 2, "pattern": "^a"}, {"ax"}),
        (False, {None}),
    ],
)
def test_keywords(schema, allowed):
    for grain in GRAINS:
        assert sample(schema, grain) in allowed


def test_items_that_must_differ_do():
    schema = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 2, "uniqueItems": True}
    for grain in GRAINS:
        assert len(set(sample(schema, grain))) == 2


def test_tuples():
    schema = {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "minItems": 2, "maxItems": 2}
    assert sample(schema, GRAINS[0]) == [1, "x"]


def test_recursion_ends():
    node = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "next": {"$ref": "#"},
            "all": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["name"],
    }
    tree = {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
    }
    endless = {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]}
    for grain in GRAINS:
        assert sample(node, grain)["name"]
        assert "left" in sample(tree, grain)
        assert "again" in sample(endless, grain)


@pytest.mark.parametrize(
    "schema", [{}, True, {"type": "string", "pattern": "("}, {"$ref": "#/nowhere"}, {"title": "T"}]
)
def test_where_anything_goes_a_word_comes(schema):
    assert sample(schema, GRAINS[0]).isalpha()
