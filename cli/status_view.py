"""How `promptmill status` looks: tables on a terminal, the same without colours, rules and cuts in a pipe or a file.

Messages and names come from outside: they are shown as text, never as markup, and without their control characters.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from cli.batch_detail import Detail, finished_counts, is_silent
from cli.foresight_view import amount, money, sentence
from cli.progress import duration, quantity
from promptmill.estimate import sum_of
from promptmill.job import BatchState, LaneState, State
from promptmill.store.batches import BatchRow
from promptmill.store.lanes import LaneRow

#: Reasons for failures that are shown unless somebody asks for all.
_TOP = 5
#: As much of an id as tells two batches apart; commands take it for the whole.
_ID_CHARACTERS = len("batch_") + 8
#: Wide enough for any line: in a file nothing is cut.
_PLAIN_WIDTH = 2_000

_TO_THE_MINUTE = len("2025-01-31 12:34")

_STYLES = {
    BatchState.COMPLETED: "green",
    BatchState.FAILED: "red",
    BatchState.CANCELLED: "yellow",
    BatchState.EXPIRED: "yellow",
    LaneState.OPEN: "green",
    LaneState.HALTED: "bold red",
}


class Page:
    """Where it is shown."""

    def __init__(self, file: TextIO) -> None:
        self.is_terminal = file.isatty()
        self._file = file
        self._console = Console(file=file, highlight=False, width=None if self.is_terminal else _PLAIN_WIDTH)

    def line(self, *parts: Text | str) -> None:
        self._show(Text(" ").join(part if isinstance(part, Text) else Text(part) for part in parts))

    def title(self, words: str) -> None:
        self._show(Text(f"\n{words}", style="bold"))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[Text | str]]) -> None:
        """A heading that ends with `>` is of a column of numbers, one that ends with `~` of words that may fold."""
        table = Table(
            box=box.SIMPLE_HEAD if self.is_terminal else None,
            padding=(0, 1 if self.is_terminal else 2, 0, 0),
            show_edge=False,
        )
        for heading in headings:
            justify: JustifyMethod = "right" if heading.endswith(">") else "left"
            folds = heading.endswith("~")
            table.add_column(heading.rstrip(">~"), justify=justify, overflow="fold", no_wrap=not folds)
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        self._show(table)

    def _show(self, what: Text | Table) -> None:
        if self.is_terminal:
            self._console.print(what)
            return
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=isinstance(what, Text))
        self._file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def print_batches(rows: Sequence[BatchRow], *, notes: Mapping[int, str], now: float, file: TextIO) -> None:
    """A line for each batch; `notes` (by its id) say what it waits for."""
    page = Page(file)
    if not rows:
        page.line("this database has no batch yet")
        return
    page.table(
        ("id", "source~", "state", "done>", "ok>", "failed>", "retried>", "tokens>", "started", "took>"),
        [
            (
                batch.public_id[:_ID_CHARACTERS] if page.is_terminal else batch.public_id,
                _clean(batch.source),
                _state(batch.state).append(f" ({notes[batch.id]})" if batch.id in notes else ""),
                f"{batch.done:,}/{batch.total:,}",
                f"{batch.succeeded:,}",
                f"{batch.failed + batch.expired + batch.invalid:,}",
                f"{batch.retried:,}",
                quantity(batch.prompt_tokens + batch.completion_tokens),
                _moment(batch.in_progress_at or batch.created_at)[: _TO_THE_MINUTE if page.is_terminal else None],
                _took(batch, now),
            )
            for batch in rows
        ],
    )


def print_detail(detail: Detail, *, now: float, all_failures: bool, file: TextIO) -> None:
    """One batch: what is done, on which lanes, what the calls came to, what failed and why, who works on it."""
    page, batch = Page(file), detail.batch
    page.line(Text(batch.public_id, style="bold"), _state(batch.state), _clean(batch.source))
    page.line(f"started {_moment(batch.in_progress_at or batch.created_at)}, took {_took(batch, now)}")
    page.line(f"{batch.done:,} of {batch.total:,} done: {_counts(detail)}")
    page.line(
        f"tokens: {quantity(batch.prompt_tokens)} in ({quantity(batch.cached_tokens)} cached), "
        f"{quantity(batch.completion_tokens)} out ({quantity(batch.reasoning_tokens)} thinking)"
    )
    for why in detail.standstill:
        page.line(Text(_clean(why), style="yellow"))
    if detail.outlook is not None and not (detail.standstill and detail.outlook.work.seconds is None):
        page.line(sentence(detail.outlook))
    if bill := _bill(detail):
        page.line(bill)
    if detail.lanes:
        page.title("lanes")
        page.table(
            ("model~", "upstream~", "state", "jobs left>", "note~"),
            [
                (_clean(lane.model), _clean(lane.upstream), _state(lane.state), f"{left:,}", _note(lane, now))
                for lane, left in detail.lanes
            ],
        )
    if detail.calls:
        page.title("calls")
        page.table(("outcome", "calls>"), [(outcome, f"{count:,}") for outcome, count in detail.calls.items()])
    _print_failures(page, detail, all_failures=all_failures)
    if detail.workers:
        page.title("workers of this database")
        page.table(
            ("name~", "in flight>", "heartbeat~"),
            [
                (
                    _clean(worker.name),
                    f"{worker.in_flight:,}",
                    f"{duration(max(0.0, now - worker.heartbeat_at))} ago"
                    + (" (silent: its jobs are given to others)" if is_silent(worker, now) else ""),
                )
                for worker in detail.workers
            ],
        )


def _print_failures(page: Page, detail: Detail, *, all_failures: bool) -> None:
    shown = detail.failures if all_failures else detail.failures[:_TOP]
    if not shown:
        if all_failures:
            page.line("nothing has failed")
        return
    page.title("did not succeed")
    if all_failures:
        for why in shown:
            page.line(f"{why.jobs:,} x {why.code}: {_clean(why.message)}")
            page.line(f"    for example {_clean(', '.join(why.examples))}")
        return
    page.table(("jobs>", "reason", "for example~"), [(f"{why.jobs:,}", why.code, _clean(why.message)) for why in shown])
    if len(detail.failures) > len(shown):
        page.line(f"and {len(detail.failures) - len(shown)} more reasons: promptmill status --failures")


def _bill(detail: Detail) -> str:
    """What it cost and will, as far as its models have prices."""
    bill = detail.bill
    parts = [] if bill.spent is None else [f"{money(bill.spent)} {bill.currency} spent"]
    if detail.batch.finished_at is None:
        tokens = sum_of((bill.prompt_tokens, bill.completion_tokens))
        span_ = f"{quantity(tokens.low)} to {quantity(tokens.high)}"
        parts.append(f"about {quantity(tokens.likely)} tokens to come ({span_})")
        if bill.cost is not None:
            parts.append(f"about {amount(bill.cost, bill.currency)} to come")
    return ", ".join(parts)


def _counts(detail: Detail) -> str:
    finished = finished_counts(detail.batch)
    done = [f"{count:,} {state}" for state, count in finished.items() if count or state is State.SUCCEEDED]
    rest = [f"{count:,} {state}" for state, count in detail.jobs.items() if state not in finished]
    words = ", ".join(done) + (f"; {', '.join(rest)}" if rest else "")
    return f"{words}; {detail.batch.retried:,} retried" if detail.batch.retried else words


def _note(lane: LaneRow, now: float) -> str:
    if lane.state is LaneState.HALTED:
        return _clean(lane.reason or "")
    if lane.paused_until is not None and lane.paused_until > now:
        return f"paused for {duration(lane.paused_until - now)}"
    return ""


def _state(state: BatchState | LaneState) -> Text:
    return Text(state.value, style=_STYLES.get(state, ""))


def _took(batch: BatchRow, now: float) -> str:
    return duration(max(0.0, (batch.finished_at or now) - (batch.in_progress_at or batch.created_at)))


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _clean(words: str) -> str:
    """On one line, and unable to move the cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(words.split()))
