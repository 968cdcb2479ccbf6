"""What a rehearsal is set to: one frozen object, made from flags once and handed down.

Every default is the harmless one (no latency, no limit, no fault), so that a bare `promptmill simulate` just answers.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cli.simulate.faults import BadFlagError, checked_faults, checked_name

Window = Literal["bucket", "strict"]
HeaderStyle = Literal["both", "together", "openai", "none"]

_LATENCY = re.compile(r"(\d+\.?\d*|\.\d+)(?:-(\d+\.?\d*|\.\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """How the simulator behaves. Faults can be changed while it runs, the rest cannot."""

    #: Where to listen. Loopback: it answers anybody who can reach it.
    host: str = "127.0.0.1"
    #: 0 takes any free port.
    port: int = 8123
    #: Each call is held for a time drawn evenly between the two.
    latency_seconds: tuple[float, float] = (0.0, 0.0)
    #: Per API key, over all models together; None is no limit.
    requests_per_minute: float | None = None
    #: Per API key; counts the usage that the answers report. None is no limit.
    tokens_per_minute: float | None = None
    #: What a limit lets through at once: its rate times this, and never less than one.
    burst_seconds: float = 1.0
    #: "bucket" refills steadily; "strict" never lets more than the limit through in any 60 s.
    window: Window = "bucket"
    #: Calls in flight above which the next gets a 429; None is no limit.
    max_concurrency: int | None = None
    #: Fault name or status → percentage of the calls.
    faults: Mapping[str, float] = field(default_factory=dict)
    #: How long a `hang` lasts before the connection is closed.
    hang_seconds: float = 3600.0
    #: The pause before each byte of a `drip`.
    drip_seconds: float = 0.05
    #: What an injected 429 or 503 says in Retry-After; 0 leaves the header out.
    retry_after_seconds: float = 1.0
    #: Another seed gives other answers, other latencies and other faults.
    seed: int = 0
    #: The one key that is let in; None lets anybody in.
    api_key: str | None = None
    #: Globs of the models that are served; None serves whatever is asked for.
    models: tuple[str, ...] | None = None
    #: Which family of rate-limit headers goes out with every answer.
    rate_limit_headers: HeaderStyle = "both"
    #: About how long answers are, drawn evenly between the two. A thought is about three times that.
    answer_tokens: tuple[int, int] = (12, 48)

    def __post_init__(self) -> None:
        _check_range("latency_seconds", self.latency_seconds, lowest=0)
        _check_range("answer_tokens", self.answer_tokens, lowest=1)
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrency"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadFlagError(f"{name} must be above 0, or left out for no limit; got {value!r}")
        for name in ("burst_seconds", "hang_seconds", "drip_seconds", "retry_after_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadFlagError(f"{name} must be 0 or more seconds; got {getattr(self, name)!r}")
        object.__setattr__(self, "faults", checked_faults(self.faults))


def parse_latency(text: str) -> tuple[float, float]:
    """ "0.5" is always half a second, "0.2-3" anything between."""
    match = _LATENCY.fullmatch(text.strip())
    if match is None:
        raise BadFlagError(f"latency {text!r}: give seconds as 0.5, or a range as 0.2-3")
    low = float(match[1])
    high = low if match[2] is None else float(match[2])
    if high < low:
        raise BadFlagError(f"latency {text!r}: the range runs backwards")
    return low, high


def parse_fault(text: str) -> tuple[str, float]:
    """ "503=5" is: five calls of a hundred are answered with 503."""
    name, equals, percent = text.partition("=")
    try:
        number = float(percent.strip().removesuffix("%"))
    except ValueError:
        number = math.nan
    if not equals or math.isnan(number):
        raise BadFlagError(f"fault {text!r}: give NAME=PERCENT, such as 503=5 or reset=0.5")
    checked = checked_faults({checked_name(name): number})
    return next(iter(checked.items()))


def parse_faults(texts: Iterable[str]) -> dict[str, float]:
    """All --fault flags of a command line; a fault that is named twice has the last word's percentage."""
    return checked_faults(dict(parse_fault(text) for text in texts))


def _check_range(name: str, limits: tuple[float, float], *, lowest: float) -> None:
    low, high = limits
    if not lowest <= low <= high < math.inf:
        raise BadFlagError(f"{name} must be a range from {lowest} up, low before high; got {limits!r}")
