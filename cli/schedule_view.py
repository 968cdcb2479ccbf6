"""How `promptmill schedule` looks. Names and reasons come from outside: they are shown as text, never as markup."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TextIO

from cli.status_view import Page
from promptmill import schedules as rule
from promptmill.schedules import time_zone
from promptmill.store.fires import FireRow
from promptmill.store.schedules import FireState, ScheduleRow

#: As much of an id as tells two schedules apart; commands take it for the whole.
_ID_CHARACTERS: Final = len("sched_") + 8
#: Of a schedule, what `show` tells beside its times, where it is set: field → words.
_TERMS: Final = {
    "model": "model", "endpoint": "endpoint", "completion_window": "completion window", "priority": "priority",
    "weight": "weight", "max_in_flight": "in flight, at most", "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute", "budget_tokens": "budget in tokens", "budget_cost": "budget in money",
    "canary": "canary",
}  # fmt: skip
_POLICIES: Final = {
    "missed": "missed fires", "overlap": "overlap", "grace_seconds": "grace in seconds",
    "jitter_seconds": "jitter in seconds",
}  # fmt: skip


def local(at: float, zone: str) -> str:
    """What a clock in the zone shows, with its offset.

    >>> local(1796088600.0, "Europe/Berlin")
    'Tue 2026-12-01 02:30:00+01:00'
    """
    moment = datetime.fromtimestamp(at, time_zone(zone))
    return f"{moment:%a} {moment.isoformat(' ', 'seconds')}"


def first_words(row: ScheduleRow) -> str:
    """When it fires next: in its zone, and in UTC."""
    if not row.is_enabled:
        return f"{row.name} is disabled; it fires again after: promptmill schedule enable {row.name!r}"
    at = row.next_fire
    if at is None:
        return f"{row.name} fires no more"
    return f"{row.name} fires next on {local(at, row.when.zone)} {row.when.zone} ({_utc(at)} UTC)"


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def to_come(row: ScheduleRow, count: int) -> list[float]:
    """Nominal times of its next fires."""
    return list(islice(rule.fires(row.when, after=row.decided_until), count)) if row.is_enabled else []


def when_words(row: ScheduleRow) -> str:
    """When it fires, in a few words."""
    when = row.when
    if when.cron is not None:
        return f"{when.cron} {when.zone}"
    return f"once, {local(when.at or 0.0, when.zone)} {when.zone}"


def print_list(rows: Sequence[ScheduleRow], last: Sequence[float | None], *, file: TextIO) -> None:
    """One line each."""
    page = Page(file)
    if not rows:
        page.line("no schedules yet: promptmill schedule add NAME --cron '30 2 * * *' FILE")
        return
    page.table(
        ("name", "id", "when", "next fire", "last fire", "fires>"),
        [
            (
                row.name, row.public_id[:_ID_CHARACTERS], when_words(row), _next(row),
                "-" if at is None else local(at, row.when.zone), f"{row.fires:,}",
            )
            for row, at in zip(rows, last, strict=True)
        ],
    )  # fmt: skip


def _next(row: ScheduleRow) -> str:
    if not row.is_enabled:
        return "disabled"
    return "-" if row.next_fire is None else local(row.next_fire, row.when.zone)


def print_one(
    row: ScheduleRow, shown: dict[str, Any], to_come: Sequence[float], past: Sequence[FireRow], *, file: TextIO
) -> None:
    """All there is to say of one."""
    page, zone = Page(file), row.when.zone
    page.line(f"{row.name}   {row.public_id}")
    page.line(f"{when_words(row)}, of {row.terms.source}" + (", with templates" if row.terms.has_templates else ""))
    if not row.is_enabled:
        page.line(first_words(row))
    for name, words in {**_POLICIES, **_TERMS}.items():
        if shown[name] is not None:
            page.line(f"  {words}: {shown[name]}")
    for name, words in (("starts_at", "starts"), ("ends_at", "ends")):
        if shown[name] is not None:
            page.line(f"  {words}: {local(shown[name], zone)}")
    page.title("next fires")
    for at in to_come:
        page.line(f"  {local(at, zone)}   ({_utc(at)} UTC)")
    if not to_come:
        page.line("  none")
    if past:
        page.title("history")
        page.table(
            ("fire", "number>", "state", "batch", "why~"),
            [
                (
                    local(fire.at, zone), "-" if fire.number is None else f"{fire.number:,}", _state(fire),
                    fire.batch_public_id or "-", fire.why or "",
                )
                for fire in past
            ],
        )  # fmt: skip


def _state(fire: FireRow) -> str:
    by_hand = " by hand" if fire.is_manual else ""
    if fire.state is FireState.FIRED and fire.batch_state is not None:
        return f"{fire.batch_state.value}{by_hand}"
    return f"{fire.state.value}{by_hand}"
