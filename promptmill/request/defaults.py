"""What a producer says once for all lines.

It is kept with the batch: the process that sends a line must make the same request of it as the one that checked it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from promptmill.errors import UsageError
from promptmill.kinds import PATHS, known_path
from promptmill.kinds.bodies import model_fault

#: Parameters that are the lines' own business.
_RESERVED = frozenset({"model", "messages", "prompt", "input", "file", "stream", "custom_id"})


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    endpoint: str | None = None
    parameters: dict[str, Any] | None = None


_STORED = msgspec.json.Decoder(_Stored)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for lines that do not say otherwise; kept with the batch.

    `model` for bodies without one; `endpoint` (a path) for lines without a url; `parameters` for the bodies that
    promptmill writes itself (PROMPT and TEXT), where the line has none of that name.

    Raises UsageError for an unknown endpoint, an empty model, and parameters that are not JSON or belong to the line.
    """

    model: str | None = None
    endpoint: str | None = None
    parameters: Mapping[str, Any] | None = field(default=None, hash=False)
    #: The parameters' JSON, by name: it is written into every body.
    written: Mapping[str, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (problem := model_fault(self.model)) is not None:
            raise UsageError(f"the default model: {problem.message}")
        if self.endpoint is not None and known_path(self.endpoint) is None:
            raise UsageError(f"the endpoint {self.endpoint!r} is not known: it must be {known_paths()}")
        written = {}
        for name, value in (self.parameters or {}).items():
            if name in _RESERVED:
                raise UsageError(f"{name} cannot be a default parameter: it belongs to the lines")
            try:
                written[name] = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            except (TypeError, ValueError) as error:
                raise UsageError(f"the default parameter {name} is not JSON: {error}") from error
        object.__setattr__(self, "written", written)

    def to_json(self) -> str:
        """A JSON object with what is set; `from_json` reads it."""
        parameters = None if self.parameters is None else dict(self.parameters)
        values = {"model": self.model, "endpoint": self.endpoint, "parameters": parameters}
        return json.dumps({name: value for name, value in values.items() if value is not None})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Defaults":
        """The defaults that `to_json` wrote. Raises UsageError for anything else."""
        try:
            stored = _STORED.decode(text)
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: not UTF-8
            raise UsageError(f"these are no defaults: {error}") from error
        return cls(stored.model, stored.endpoint, stored.parameters)


def known_paths() -> str:
    """The paths there are, for messages."""
    *most, last = PATHS
    return f"{', '.join(most)} or {last}"
