"""What came and what became of it: the other side's account, to hold a client's own against.

`duplicates` is the number to look at after a run with crashes and faults: how often the same request was answered
again. Bodies are kept as 8-byte digests, so that a million of them fit in some tens of megabytes.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Stats:
    #: Calls under /v1 that arrived, refused ones included.
    requests: int = 0
    #: Calls that passed the limits, by the second of the wall clock in which they did.
    per_second: Counter[int] = field(default_factory=Counter)
    #: By the status that was sent; what was cut off or never answered is not here.
    answered: Counter[int] = field(default_factory=Counter)
    #: By name, those of the script included.
    faults: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    by_path: Counter[str] = field(default_factory=Counter)
    #: Calls between passing the limits and the end of their answer.
    in_flight: int = 0
    peak_in_flight: int = 0
    #: Clients that went away before their answer was sent.
    client_gone: int = 0
    #: Of whole, right answers only.
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Whole, right answers to a body that had one already.
    duplicates: int = 0
    _answered_bodies: set[int] = field(default_factory=set)

    def arrived(self, path: str) -> None:
        self.requests += 1
        self.by_path[path] += 1

    def entered(self, model: str) -> None:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self.by_model[model] += 1
        self.per_second[int(time.time())] += 1

    def left(self) -> None:
        self.in_flight -= 1

    def served(self, grain: bytes, prompt_tokens: int, completion_tokens: int) -> None:
        """A whole, right answer went out."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        body = int.from_bytes(grain[:8], "big")
        if body in self._answered_bodies:
            self.duplicates += 1
        else:
            self._answered_bodies.add(body)

    @property
    def distinct_bodies_answered(self) -> int:
        return len(self._answered_bodies)

    def restart(self) -> None:
        """From zero; calls that are still in flight stay in flight."""
        for name in (entry.name for entry in fields(self)):
            value = getattr(self, name)
            if name in ("in_flight", "peak_in_flight"):
                setattr(self, name, self.in_flight)
            elif isinstance(value, int):
                setattr(self, name, 0)
            else:
                value.clear()

    def as_json(self) -> dict[str, Any]:
        tokens = {"prompt": self.prompt_tokens, "completion": self.completion_tokens}
        return {
            "requests": self.requests,
            "answered": {str(status): count for status, count in sorted(self.answered.items())},
            "faults": dict(sorted(self.faults.items())),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "client_gone": self.client_gone,
            "tokens": {**tokens, "total": sum(tokens.values())},
            "accepted": self.per_second.total(),
            "per_second": sorted(self.per_second.items()),
            "duplicates": self.duplicates,
            "distinct_bodies_answered": self.distinct_bodies_answered,
            "by_model": dict(self.by_model.most_common()),
            "by_path": dict(self.by_path.most_common()),
        }
