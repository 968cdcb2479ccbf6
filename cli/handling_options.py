"""The flags that say how a batch is handled beside others: the same on every command that makes or changes one."""

import time
from typing import Annotated, Final

import typer

from cli.moments import moment
from promptmill import handling
from promptmill.errors import UsageError
from promptmill.handling import AfterCanary, Handling

Priority = Annotated[
    str, typer.Option(metavar="CLASS|N", help="interactive, high, normal, background, or a number; higher goes first.")
]
Window = Annotated[
    str | None,
    typer.Option(metavar="90m|24h|7d|background", help="The completion window: what is not sent in it expires."),
]
Weight = Annotated[float | None, typer.Option(help="Its share beside others of its class.", show_default="1")]
BudgetTokens = Annotated[int | None, typer.Option(help="Pause it when it has spent so many tokens.")]
BudgetCost = Annotated[float | None, typer.Option(help="Pause it when it has spent so much, by the prices configured.")]
Canary = Annotated[int | None, typer.Option(help="Run so many jobs first; pause it when too many of them fail.")]
CanaryPercent = Annotated[float | None, typer.Option(help="So many per cent may fail.", show_default="10")]
CanaryAsk = Annotated[bool, typer.Option("--canary-ask", help="Pause it also after a good canary, to look at it.")]
NotBefore = Annotated[
    str | None, typer.Option(metavar="MOMENT", help="Start nothing sooner: 2026-12-01T02:00, or +90m from now.")
]

#: Field → the flag that sets it, where that is not the field's name.
_FLAGS: Final = {"requests_per_minute": "--rpm", "tokens_per_minute": "--tpm", "completion_window": "--window"}


def handling_of(
    *,
    weight: float | None = None,
    max_in_flight: int | None = None,
    rpm: float | None = None,
    tpm: float | None = None,
    budget_tokens: int | None = None,
    budget_cost: float | None = None,
    canary: int | None = None,
    canary_percent: float | None = None,
    canary_ask: bool = False,
    not_before: str | None = None,
) -> Handling:
    """What the flags ask for. Raises UsageError."""
    if canary is None and (canary_ask or canary_percent is not None):
        raise UsageError("--canary-percent and --canary-ask are about a canary; say how many jobs with --canary N")
    found = Handling(
        weight=1.0 if weight is None else weight,
        max_in_flight=max_in_flight,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        budget_tokens=budget_tokens,
        budget_cost=budget_cost,
        canary=canary,
        canary_percent=handling.DEFAULT_CANARY_PERCENT if canary_percent is None else canary_percent,
        canary_then=AfterCanary.ASK if canary_ask else AfterCanary.CONTINUE,
        not_before=None if not_before is None else moment(not_before, "--not-before", now=time.time()),
    )
    try:
        handling.check(found)
    except UsageError as error:
        raise by_flag(error) from None
    return found


def deadline_of(window: str | None, within: float | None, handled: Handling, *, now: float) -> float | None:
    """When a batch that is made now expires. Raises UsageError."""
    if within is not None:
        if window is not None:
            raise UsageError("--window and --within say the same; give one of them")
        return max(now, handled.not_before or 0.0) + within_seconds(within)
    if window is None:
        return None
    try:
        return handling.deadline(window, made_at=now, not_before=handled.not_before)
    except UsageError as error:
        raise by_flag(error) from None


def within_seconds(value: float) -> float:
    """What --within says. Raises UsageError for what a window could not be (inf and nan are floats, too)."""
    if not 0 < value <= handling.MAX_WINDOW_SECONDS:
        raise UsageError(f"--within must be above 0 seconds, and 365 days ({handling.MAX_WINDOW_SECONDS:,}) at most")
    return value


def by_flag(error: UsageError) -> UsageError:
    """The same, with the flag in place of the field that it begins with."""
    name, _, words = str(error).partition(" ")
    return UsageError(f"{_FLAGS.get(name, '--' + name.replace('_', '-'))} {words}")
