"""Who may pass: the limits of each API key, the refusals they lead to, and the headers that tell how much is left.

The limits are kept per key and over all models together. Providers limit per organisation and model; but whoever
writes `--rpm 600` here means to see whether a client keeps to 600, and with a limit for each model the answer would
depend on how many models it mixes.
"""

import math
from collections.abc import Callable, Mapping

from cli.simulate.config import HeaderStyle, SimulateConfig
from cli.simulate.limits import Limit, SlidingWindow, TokenBucket
from cli.simulate.reply import Refusal

RawHeaders = list[tuple[bytes, bytes]]

_SECOND = 1000  # in milliseconds
_MINUTE = 60 * _SECOND


class Gate:
    """Requests and tokens, all or nothing: a refusal takes from neither."""

    def __init__(self, config: SimulateConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._requests: dict[str, Limit] = {}
        self._tokens: dict[str, Limit] = {}

    def restart(self) -> None:
        """Everybody's limits as if nothing had passed."""
        self._requests.clear()
        self._tokens.clear()

    def check_requests(self, key: str) -> None:
        """Refuse before any work is done for the answer; takes nothing yet."""
        limit = self._limit(self._requests, self._config.requests_per_minute, key)
        if limit is not None and (wait := limit.seconds_until(1, self._clock())) > 0:
            raise limited("request", limit.per_minute, wait)

    def pass_through(self, key: str, tokens: int) -> None:
        """Take one request and what the call uses, or refuse and take nothing."""
        now = self._clock()
        by_request = self._limit(self._requests, self._config.requests_per_minute, key)
        by_token = self._limit(self._tokens, self._config.tokens_per_minute, key)
        if by_request is not None and (wait := by_request.seconds_until(1, now)) > 0:
            raise limited("request", by_request.per_minute, wait)
        if by_token is not None and (wait := by_token.seconds_until(tokens, now)) > 0:
            raise limited("token", by_token.per_minute, wait)
        if by_request is not None:
            by_request.take(1, now)
        if by_token is not None:
            by_token.take(tokens, now)

    def headers(self, key: str) -> RawHeaders:
        """What every answer says about the limits in force, in the families that the configuration asks for."""
        now, style = self._clock(), self._config.rate_limit_headers
        by_request = self._limit(self._requests, self._config.requests_per_minute, key)
        by_token = self._limit(self._tokens, self._config.tokens_per_minute, key)
        found: RawHeaders = []
        if by_request is not None:
            found += _families(by_request, now, style, together=b"x-ratelimit-", openai=b"requests")
        if by_token is not None:
            found += _families(by_token, now, style, together=b"x-tokenlimit-", openai=b"tokens")
        return found

    def _limit(self, kept: dict[str, Limit], per_minute: float | None, key: str) -> Limit | None:
        if per_minute is None:
            return None
        limit = kept.get(key)
        if limit is None:
            strict = self._config.window == "strict"
            bucket = TokenBucket(per_minute, self._config.burst_seconds, self._clock())
            limit = kept[key] = SlidingWindow(per_minute) if strict else bucket
        return limit


def limited(what: str, per_minute: float, wait_seconds: float) -> Refusal:
    """Together's 429: its error_type says which of the two limits binds."""
    message = (
        f"You have reached the {what} rate limit of {per_minute:g} {what}s per minute (dynamic rate limit). "
        f"Please slow down and try again in {wait_seconds:.3f} seconds."
    )
    return too_many(message, f"dynamic_{what}_limited", wait_seconds)


def too_many(message: str, error_type: str, wait_seconds: float) -> Refusal:
    beside: Mapping[str, str] = {"error_type": error_type}
    return Refusal(
        429, message, type_=error_type, code="rate_limit_exceeded", beside=beside, retry_after_seconds=wait_seconds
    )


def _families(limit: Limit, now: float, style: HeaderStyle, *, together: bytes, openai: bytes) -> RawHeaders:
    found: RawHeaders = []
    left = math.floor(limit.remaining(now) + 1e-6)
    if style in ("both", "together"):
        # Per second, and the reset is the time to wait before the next call.
        found += [
            (together + b"limit", f"{round(limit.per_minute / 60, 3):.15g}".encode()),
            (together + b"remaining", b"%d" % left),
            (together + b"reset", f"{limit.seconds_until(1, now):.3f}".encode()),
        ]
    if style in ("both", "openai"):
        # Per minute, and the reset is the time until nothing counts against the limit any more.
        found += [
            (b"x-ratelimit-limit-" + openai, b"%d" % limit.per_minute),
            (b"x-ratelimit-remaining-" + openai, b"%d" % left),
            (b"x-ratelimit-reset-" + openai, _duration(limit.seconds_until_full(now)).encode()),
        ]
    return found


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(max(0.0, seconds) * _SECOND)
    if milliseconds < _SECOND:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, _MINUTE)
    return f"{minutes}m{rest / _SECOND:g}s" if minutes else f"{rest / _SECOND:g}s"
