"""Lists as OpenAI's clients page through them."""

from collections.abc import Sequence
from typing import Any


def page(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """One page: its items, and the ids that the next one is asked for with."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def page_schema(item: dict[str, Any]) -> dict[str, Any]:
    """What the OpenAPI document says of a page of such items."""
    return {
        "type": "object",
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": item},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
    }
