"""What the OpenAPI document says of the bodies that go to an upstream: what this program makes sure of, and no more.
Fields that it does not name are sent on as they came."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from api.openapi import reference, schema
from promptmill.kinds import KINDS, Kind
from promptmill.kinds.bodies import MAX_MODEL_CHARACTERS

_MODEL: Final = {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_CHARACTERS}


def call_schema(kind: Kind) -> dict[str, Any]:
    """A body of this kind, which says its model."""
    return _with_model([reference(_name(kind))])


def any_call(*, names_model: bool = True) -> dict[str, Any]:
    """A body of any kind; without `names_model` the model may be said elsewhere."""
    kinds = [reference(_name(kind)) for kind in KINDS.values()]
    return _with_model(kinds) if names_model else {"anyOf": kinds}


def _with_model(kinds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "object", "required": ["model"], "properties": {"model": _MODEL}, "anyOf": list(kinds)}


def _name(kind: Kind) -> str:
    return f"{kind.name.capitalize()}Call"


def _not_empty(described: Mapping[str, Any]) -> dict[str, Any]:
    """A call for nothing is refused: what it needs has an item, where it is a list."""
    needed = {name: dict(described["properties"][name]) for name in described["required"]}
    for field in needed.values():
        for option in (field, *field.get("anyOf", ())):
            if option.get("type") == "array":
                option["minItems"] = 1
    return {**described, "properties": {**described["properties"], **needed}}


#: What `reference` refers to.
CALL_SCHEMAS: Final[Mapping[str, Any]] = {_name(kind): _not_empty(schema(kind.body.type)) for kind in KINDS.values()}
