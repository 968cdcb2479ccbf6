"""What the run is doing and why it waits: a live view on a terminal, a plain line every few seconds elsewhere, JSON
lines for machines. All of it is told from one `Snapshot`."""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.foresight_view import seconds_left, short
from promptmill.outlook import Outlook
from promptmill.told import ForesightTold, foresight_told

Mode = Literal["live", "plain", "json", "quiet"]

_PLAIN_EVERY_SECONDS: Final = 5.0
_LIVE_EVERY_SECONDS: Final = 0.2
#: Rates are of the last so many seconds.
_RATE_WINDOW_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a run. Rates are per second; `seconds_left` is None while there is nothing to go by.

    What is to be expected is foresight's, so `status` and the HTTP API say the same of the batch.
    """

    total: int
    done: int
    failed: int
    retried: int
    in_flight: int
    jobs_per_second: float
    tokens_per_second: float
    waiting_for: str
    seconds_left: float | None
    elapsed_seconds: float
    left: str  # the same in words
    foresight: ForesightTold | None


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts by now."""

    done: int
    failed: int
    retried: int
    in_flight: int
    tokens: int
    waiting_for: str
    #: The last one that was made, however long ago.
    outlook: Outlook | None = None
    #: Now, in the outlook's clock.
    at: float = 0.0


class Meter:
    """Turns counts into rates."""

    def __init__(self, total: int, read: Callable[[], Reading], clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._read = read
        self._clock = clock
        self._started = clock()
        self._seen: deque[tuple[float, int, int]] = deque()

    def snapshot(self) -> Snapshot:
        """One look."""
        now, counts = self._clock(), self._read()
        self._seen.append((now, counts.done, counts.tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RATE_WINDOW_SECONDS:
            self._seen.popleft()
        since, done, tokens = self._seen[0]
        span = now - since
        rate = (counts.done - done) / span if span > 0 else 0.0
        return Snapshot(
            self._total, counts.done, counts.failed, counts.retried, counts.in_flight, rate,
            (counts.tokens - tokens) / span if span > 0 else 0.0, counts.waiting_for,
            None if counts.outlook is None else seconds_left(counts.outlook, now=counts.at), now - self._started,
            "? left" if counts.outlook is None else short(counts.outlook, now=counts.at),
            None if counts.outlook is None else foresight_told(counts.outlook),
        )  # fmt: skip


def duration(seconds: float | None) -> str:
    """Time for people.

    >>> duration(3725), duration(65.2), duration(0.42), duration(None)
    ('1:02:05', '1:05', '0.4 s', '?')
    """
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quantity(number: float) -> str:
    """A number for people.

    >>> quantity(950), quantity(12_345), quantity(3_400_000), quantity(7.25)
    ('950', '12.3k', '3.4M', '7.2')
    """
    if number >= 1_000_000:
        return f"{number / 1_000_000:.1f}M"
    if number >= 10_000:
        return f"{number / 1_000:.1f}k"
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def line(s: Snapshot) -> str:
    """A snapshot on one line."""
    parts = [
        f"{s.done:,}/{s.total:,} done", f"{s.failed:,} failed", f"{s.retried:,} retried", f"{s.in_flight:,} in flight",
        f"{quantity(s.jobs_per_second)}/s", f"{quantity(s.tokens_per_second)} tokens/s",
    ]  # fmt: skip
    if s.waiting_for:
        parts.append(s.waiting_for)
    parts.append(s.left)
    return ", ".join(parts)


def view(s: Snapshot, title: str) -> Group:
    """A snapshot for a terminal."""
    facts = Table.grid(padding=(0, 2))
    share = s.done / s.total if s.total else 1.0
    facts.add_row(
        ProgressBar(total=s.total or 1, completed=s.done, width=40),
        Text(f"{share:.0%}", style="bold"),
        Text(f"{s.done:,} of {s.total:,}"),
        Text(s.left, style="dim"),
    )
    counts = Text.assemble(
        ("✓ ", "green"), f"{s.done - s.failed:,} succeeded   ",
        ("✗ ", "red" if s.failed else "dim"), f"{s.failed:,} failed   ",
        ("↻ ", "yellow" if s.retried else "dim"), f"{s.retried:,} retried   ",
        ("⇄ ", "cyan"), f"{s.in_flight:,} in flight   ",
        f"{quantity(s.jobs_per_second)} jobs/s   {quantity(s.tokens_per_second)} tokens/s",
    )  # fmt: skip
    return Group(
        _folded(Text(title, style="bold")), facts, _folded(counts), _folded(Text(s.waiting_for, style="yellow"))
    )


def _folded(text: Text) -> Text:
    """At the terminal's width, also where a long line is said above it: what runs over is not erased again."""
    text.no_wrap, text.overflow = False, "fold"
    return text


class Progress(AbstractAsyncContextManager["Progress"]):
    """Shows the run while it is entered. Everything but JSON goes to stderr: stdout may be the results."""

    def __init__(self, meter: Meter, title: str, mode: Mode, console: Console) -> None:
        self._meter = meter
        self._title = title
        self._mode = mode
        self._console = console
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        show = {"live": self._live, "plain": self._plain, "json": self._plain, "quiet": self._nothing}[self._mode]
        self._meter.snapshot()
        self._task = asyncio.create_task(show())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        with Live(view(self._meter.snapshot(), self._title), console=self._console, auto_refresh=False) as live:
            try:
                while True:
                    live.update(view(self._meter.snapshot(), self._title), refresh=True)
                    await asyncio.sleep(_LIVE_EVERY_SECONDS)
            finally:
                live.update(view(self._meter.snapshot(), self._title), refresh=True)

    async def _plain(self) -> None:
        while True:
            await asyncio.sleep(_PLAIN_EVERY_SECONDS)
            snapshot = self._meter.snapshot()
            if self._mode == "json":
                print(json.dumps({"event": "progress", **msgspec.to_builtins(snapshot)}), flush=True)
            else:
                print(line(snapshot), file=sys.stderr, flush=True)

    async def _nothing(self) -> None:
        return


def mode_for(*, as_json: bool, quiet: bool) -> Mode:
    """How to show progress on this terminal, or without one."""
    if as_json:
        return "json"
    if quiet:
        return "quiet"
    return "live" if sys.stderr.isatty() else "plain"
