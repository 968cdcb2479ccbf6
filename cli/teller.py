"""What a run says to people, on stderr, so that stdout is free for results; and its last word, in JSON where asked."""

import json
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping

from rich.console import Console
from rich.text import Text

from cli.progress import duration, quantity
from promptmill.engine import Database
from promptmill.outcome import Failure
from promptmill.settings import Settings
from promptmill.store.batches import BatchRow

#: Bad lines that are shown; the rest is counted.
_LINES_SHOWN = 20


def shortened(words: str) -> str:
    """Somebody else's words, fit for one line."""
    return textwrap.shorten(words, 120, placeholder="…")


class Teller:
    """Says things on stderr, so that stdout is free for results (or JSON)."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet
        #: What is shown live while something is said has to be shown on this one, too.
        self.console = Console(stderr=True, highlight=False)

    def say(self, words: str) -> None:
        """One line, however long: a command in it is to be copied."""
        self.console.print(Text(words), soft_wrap=True)

    def title(self, settings: Settings, batch: BatchRow) -> str:
        """What the progress view is headed with."""
        hosts = ", ".join(upstream.url for upstream in settings.upstreams)
        return f"{batch.source} → {hosts}   {batch.public_id}"

    def database(self, db: Database) -> str:
        """How `--db` would name it; without a password."""
        return db.url.database or "" if db.is_sqlite else db.url.render_as_string(hide_password=True)

    def command_line(self) -> str:
        """What was typed, to be typed again to go on: so without --fresh. A key is never part of it."""
        return shlex.join(["promptmill", *(word for word in sys.argv[1:] if word != "--fresh")])

    def resuming(self, batch: BatchRow, db: Database) -> None:
        """An earlier run left this."""
        if batch.finished_at is None:
            self.say(f"resuming {batch.public_id}: {batch.done:,} of {batch.total:,} are done and not sent again")
        else:
            self.say(f"already finished: {batch.done:,} results are in {self.database(db)} (--fresh starts anew)")

    def reading(self) -> "_Reading":
        """While the input is read: call what it gives with the number of lines so far."""
        return _Reading(self.console, shown=not (self._quiet or self._as_json))

    def bad_lines(self, errors: Iterable[object], total: int, what: str) -> None:
        """The first of them, and how many there are."""
        shown = list(errors)[:_LINES_SHOWN]
        for error in shown:
            self.say(f"  {error}")
        if total > len(shown):
            self.say(f"  … and {total - len(shown):,} more")
        self.say(f"{total:,} bad line{'s' if total != 1 else ''} {what}")

    def halted(
        self, halts: Mapping[int, Failure], names: Mapping[int, tuple[str, str]], settings: Settings, unfinished: int
    ) -> None:
        """One clear thing: the upstream's words, and what to check."""
        told = set()
        for lane_id, failure in halts.items():
            upstream, model = names.get(lane_id, ("?", "?"))
            config = next((u for u in settings.upstreams if u.name == upstream), None)
            source = config.key_source if config else "?"
            advice = {
                "unauthorized": f"check the key ({source})",
                "payment_required": "check the account's balance",
                "forbidden": f"check that the key ({source}) may use {model}",
                "model_not_available": f"check the model's name ({model}), or deploy it",
            }.get(failure.reason.value, "check the endpoint")
            words = f"{upstream} answered {failure.status or failure.reason.value}: {failure.message}\n→ {advice}"
            if words not in told:
                told.add(words)
                self.console.print(Text(words, style="red"), soft_wrap=True)
        self.say(f"{unfinished:,} jobs wait; when it is mended, the same line goes on: {self.command_line()}")

    def summary(self, batch: BatchRow, *, exit_code: int) -> None:
        """The last word."""
        if self._as_json:
            print(json.dumps({"event": "summary", **_facts(batch), "exit_code": exit_code}), flush=True)
            return
        others = {"cancelled": batch.cancelled, "expired": batch.expired}
        counts = {"succeeded": batch.succeeded, "failed": batch.failed + batch.invalid}
        counts |= {name: count for name, count in others.items() if count}
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        tokens = batch.prompt_tokens + batch.completion_tokens
        self.say(
            f"{told}, {batch.total - batch.done:,} waiting; "
            f"{batch.retried:,} retried, {quantity(tokens)} tokens, {duration(_seconds(batch))}"
        )


def _facts(batch: BatchRow) -> dict[str, object]:
    counts = ("total", "succeeded", "failed", "expired", "cancelled", "invalid", "retried", "prompt_tokens",
              "completion_tokens", "reasoning_tokens")  # fmt: skip
    return {
        "batch": batch.public_id,
        "state": batch.state.value,
        **{name: getattr(batch, name) for name in counts},
        "seconds": round(_seconds(batch), 3),
    }


def _seconds(batch: BatchRow) -> float:
    return (batch.finished_at or time.time()) - (batch.in_progress_at or batch.created_at)


class _Reading:
    """Shows how far the input has been read, where somebody is watching a long one."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._status = console.status("reading the input") if shown and console.is_terminal else None

    def __enter__(self) -> Callable[[int], None]:
        if self._status is None:
            return lambda _lines: None
        status = self._status
        status.start()
        return lambda lines: status.update(f"reading the input: {lines:,} lines checked")

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
