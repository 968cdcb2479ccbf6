"""The OpenAPI document: made from the routes, with bodies described by the msgspec structs that read them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from fastapi import FastAPI

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "oneOf": [
                {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                },
                {"type": "string", "description": "What Together's clients get of files and batches."},
            ]
        }
    },
}

_WORDS: Final = {
    400: "The request is wrong; the message says what to change.",
    401: "There is no API key in the request, or not one of this server's.",
    402: "The upstream wants to be paid first.",
    403: "Without keys the server serves only its own machine; with keys, some paths need an admin's.",
    404: "There is no such thing, or it is another tenant's.",
    405: "Not with this method.",
    409: "It is not in a state for this, or the same Idempotency-Key came with another body.",
    413: "Too large.",
    415: "The body is of a type that this path does not read.",
    416: "Not a range of this content.",
    429: "Too many requests.",
    431: "The headers are too large.",
    500: "Something broke here; the log has it under the request's id.",
    502: "The upstream gave no usable answer.",
    503: "Cannot be served now; try again after Retry-After.",
    504: "The upstream did not answer in time.",
}

#: What any path may answer.
_ALWAYS: Final = (400, 401, 403, 431, 500, 503)


def schema(struct: Any) -> dict[str, Any]:
    """The JSON schema of a msgspec struct, in one piece."""
    whole = msgspec.json.schema(struct)
    definitions = whole.pop("$defs", {})
    resolved: dict[str, Any] = _inlined(whole, definitions)
    return resolved


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
        # A struct's own name says nothing to readers of the document.
        return {
            name: _inlined(inner, definitions)
            for name, inner in value.items()
            if name != "title" or not isinstance(inner, str)
        }
    if isinstance(value, list):
        return [_inlined(inner, definitions) for inner in value]
    return value


def reference(name: str) -> dict[str, Any]:
    """One of the document's own schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def takes(
    struct: Any,
    content_type: str = "application/json",
    *,
    parameters: Sequence[Mapping[str, Any]] = (),
    required: bool = True,
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads such a body, and `parameters` that FastAPI does not know of."""
    described = schema(struct) if not isinstance(struct, dict) else struct
    body = {"requestBody": {"required": required, "content": {content_type: {"schema": described}}}}
    return {**body, "parameters": list(parameters)} if parameters else body


def header(name: str, description: str, **described: Any) -> dict[str, Any]:
    """A header that a route looks at by itself."""
    told = {"type": "string", **described}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": told}


def in_query(properties: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same, in the query: a form's fields, by their names."""
    return [{"name": name, "in": "query", "required": False, "schema": told} for name, told in properties.items()]


IDEMPOTENCY_KEY: Final = header(
    "Idempotency-Key", "What is sent again with it is told what the first request made.", minLength=1, maxLength=255
)


def answers(
    struct: Any, *errors: int, status: int = 200, content_type: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: such a body, or one of these errors (beside those that any path may answer)."""
    described = schema(struct) if not isinstance(struct, dict) else struct
    good: dict[int | str, dict[str, Any]] = {
        status: {"description": "As asked.", "content": {content_type: {"schema": described}}}
    }
    return {**good, **refusals(*errors)}


def refusals(*statuses: int, passed_on: bool = False) -> dict[int | str, dict[str, Any]]:
    """The errors alone. Where an upstream's are `passed_on`, they are in its words and may be of any type."""
    content: dict[str, Any] = (
        {"*/*": {"schema": {}}} if passed_on else {"application/json": {"schema": reference("Error")}}
    )
    told: dict[int | str, dict[str, Any]] = {
        status: {"description": _WORDS[status], "content": content} for status in sorted({*_ALWAYS, *statuses})
    }
    if passed_on:
        told["default"] = {"description": "The upstream's own refusal, as it came.", "content": content}
    return told


def describe(app: FastAPI, schemas: Mapping[str, Any]) -> None:
    """Have FastAPI's document say what is true here: wrong parameters are answered 400, never 422.

    `schemas` are those that others refer to.
    """
    generate = app.openapi

    def document() -> dict[str, Any]:
        made = generate()
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        components = made.setdefault("components", {})
        found = components.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            found.pop(name, None)
        found.update({**schemas, "Error": _ERROR})
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}, {}]
        return made

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend the document
