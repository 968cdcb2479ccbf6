"""What limits calls: of an upstream, a lane, a batch or a tenant. The counting is done in `worker.limits`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What may start; None is unlimited."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_in_flight: int | None = None

    @property
    def is_unlimited(self) -> bool:
        """Is nothing limited?"""
        return self.requests_per_minute is None and self.tokens_per_minute is None and self.max_in_flight is None
