"""`promptmill change`: another priority, deadline, weight, caps, budget or start for a batch that runs."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli.database import existing_database
from cli.handling_options import by_flag, within_seconds
from cli.moments import moment, shown
from cli.ringing import ring
from promptmill import handling
from promptmill.errors import NotNow, UsageError
from promptmill.handling import AfterCanary
from promptmill.store import batches, changes
from promptmill.store.batches import BatchRow
from promptmill.store.changes import Change

_NONE = "none"
_Text = str | None


def _option(help_: str, metavar: str) -> Any:
    return typer.Option(help=help_, metavar=metavar)


def change(
    batch: Annotated[str, typer.Argument(help="A batch's id, or how it begins.")],
    *,
    priority: Annotated[_Text, _option("interactive, high, normal, background, or a number.", "CLASS|N")] = None,
    window: Annotated[
        _Text, _option("The completion window, from when the batch was made.", "90m|24h|7d|background")
    ] = None,
    within: Annotated[float | None, typer.Option(metavar="SECONDS", help="The same, from now.")] = None,
    weight: Annotated[float | None, typer.Option(help="Its share beside others of its class.")] = None,
    max_in_flight: Annotated[_Text, _option("Its calls at once, at most.", "N|none")] = None,
    rpm: Annotated[_Text, _option("Its requests per minute, at most.", "N|none")] = None,
    tpm: Annotated[_Text, _option("Its tokens per minute, at most.", "N|none")] = None,
    budget_tokens: Annotated[_Text, _option("Pause it when it has spent so many tokens.", "N|none")] = None,
    budget_cost: Annotated[_Text, _option("Pause it when it has spent so much.", "X|none")] = None,
    canary: Annotated[_Text, _option("Run so many jobs first; before any of them was started.", "N|none")] = None,
    canary_percent: Annotated[float | None, typer.Option(help="So many per cent of the canary may fail.")] = None,
    canary_ask: Annotated[
        bool | None, typer.Option("--canary-ask/--no-canary-ask", help="Pause it also after a good canary.")
    ] = None,
    not_before: Annotated[
        _Text, _option("Start nothing sooner: 2026-12-01T02:00, or +90m from now.", "MOMENT|none")
    ] = None,
    db: Annotated[
        str | None, typer.Option(help="Database file or URL.", show_default="PROMPTMILL_DATABASE_URL")
    ] = None,
) -> None:
    """Change a batch that is not finished; what is not named stays. It takes effect within a second."""
    now = time.time()
    asked: dict[str, Any] = {
        "priority": None if priority is None else handling.priority_number(priority),
        "completion_window": window,
        "deadline": None if within is None else now + within_seconds(within),
        "weight": weight,
        "canary_percent": canary_percent,
        "canary_then": None if canary_ask is None else AfterCanary.ASK if canary_ask else AfterCanary.CONTINUE,
    }
    values = {name: value for name, value in asked.items() if value is not None}
    values |= or_none(
        ("max_in_flight", max_in_flight, int), ("requests_per_minute", rpm, float), ("tokens_per_minute", tpm, float),
        ("budget_tokens", budget_tokens, int), ("budget_cost", budget_cost, float), ("canary", canary, int),
        ("not_before", not_before, lambda text: moment(text, "--not-before", now=now)),
    )  # fmt: skip
    if not values:
        raise UsageError("say what is to be changed; see: promptmill change --help")
    after = asyncio.run(_change(batch, Change(**values), db, now))
    ring(db)
    print(f"changed {after.public_id}: {', '.join(f'{name} is {_shown(name, after)}' for name in values)}")


async def _change(reference: str, wanted: Change, option: str | None, now: float) -> BatchRow:
    async with existing_database(option) as db:
        found = await batches.find(db, reference)
        if found.is_inbox:
            raise NotNow(f"{found.public_id} holds jobs that were submitted singly; it cannot be changed as a whole")
        try:
            if await changes.change(db, batch_id=found.id, wanted=wanted, now=now):
                await changes.spread_deadline(db, batch_id=found.id)
        except NotNow:
            raise
        except UsageError as error:
            raise by_flag(error) from None
        return await batches.get(db, found.id)


def or_none(*asked: tuple[str, str | None, Callable[[str], Any]]) -> dict[str, Any]:
    """Field → value of (field, what was typed, how it is read), for what was typed: `none` is no such thing any more.

    Raises UsageError.
    """
    values = {}
    for name, text, read in asked:
        if text is not None:
            try:
                values[name] = None if text == _NONE else read(text)
            except ValueError:
                raise by_flag(UsageError(f"{name} is {text[:40]!r}; write a number, or {_NONE}")) from None
    return values


def _shown(name: str, batch: BatchRow) -> str:
    value = getattr(batch, name)
    if value is None:
        return _NONE
    if name in ("deadline", "not_before"):
        return shown(value)
    return f"{value:,}" if isinstance(value, int | float) else str(value)
