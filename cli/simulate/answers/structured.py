"""response_format: the answer as JSON, where the request insists on it."""

from collections.abc import Mapping

import msgspec

from cli.simulate import checks, json_schema
from cli.simulate.call import Call
from cli.simulate.grain import fraction, words


def structured_text(call: Call, index: int) -> str | None:
    """The JSON text, or None where plain text will do."""
    wanted = call.body.get("response_format")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise checks.wrong_type("response_format", "an object", wanted)
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise checks.wrong_value("response_format.type", "supported values are: text, json_object, json_schema.")
    grain = call.grain + b"%d" % index
    # OpenAI nests the schema under json_schema.schema, Together takes it as `schema`, with either type.
    nested = wanted.get("json_schema")
    schema = nested.get("schema", nested) if isinstance(nested, Mapping) else wanted.get("schema")
    if isinstance(schema, Mapping):
        return _encoded(json_schema.sample(schema, grain))
    if kind == "json_schema":
        raise checks.missing("response_format.json_schema.schema")
    free_form = {
        "answer": f"Rehearsal answer {call.hex_id[:8]}.{index}.",
        "tags": words(grain, "tags", 2),
        "confidence": round(fraction(grain, "confidence"), 3),
    }
    return _encoded(free_form)


def _encoded(value: object) -> str:
    return msgspec.json.encode(value).decode()
