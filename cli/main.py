"""The terminal door: every command by its name, and how errors are shown. Exit 2 is always the caller's to mend.

A command's module is imported when that command is asked for: `run` should not wait for a web server or a broker's
client to be imported.
"""

import importlib
import sys
from typing import Any, Final

import typer
from typer.core import TyperGroup

from promptmill.errors import InputError, PromptmillError

#: Command → (module, function, what it does). `--help` shows them in this order.
COMMANDS: Final = {
    "run": ("cli.run", "run", "Work a file of prompts through an endpoint; again to resume."),
    "serve": ("cli.serve", "serve", "The HTTP API and a worker in one process."),
    "keys": ("cli.keys", "keys", "Make, list and revoke API keys."),
    "status": ("cli.status", "status", "Show the batches, or one of them in detail."),
    "results": ("cli.results", "results", "Write results as JSONL, CSV or Parquet, media as files."),
    "simulate": ("cli.simulate.command", "simulate", "An OpenAI/Together-shaped endpoint to rehearse against."),
    "submit": ("cli.submit", "submit", "Enqueue a file of prompts for workers that run elsewhere."),
    "schedule": ("cli.schedule", "schedule", "Submit a file again and again, by cron expression, or once at a time."),
    "watch": ("cli.watch", "watch", "Follow a batch until it is finished."),
    "pause": ("cli.pause", "pause", "Start no more calls of a batch, a lane, a tenant, or everything."),
    "resume": ("cli.pause", "resume", "Go on with what was paused; let halted lanes try again."),
    "cancel": ("cli.cancel", "cancel", "Stop a batch: nothing more is sent, calls under way are kept."),
    "retry": ("cli.retry", "retry", "Try failed jobs of a batch again."),
    "change": ("cli.change", "change", "Another priority, deadline, weight, cap, budget or start for a batch."),
    "seal": ("cli.submit", "seal", "Say that no more jobs are added to an open batch."),
    "tenants": ("cli.tenants", "tenants", "Show tenants and what they use; give them shares and caps."),
    "doctor": ("cli.doctor", "doctor", "Say what is wrong, and what to do."),
    "up": ("cli.up", "up", "A local cluster: PostgreSQL, Redis, API, workers, clock."),
    "migrate": ("cli.migrate", "migrate", "Bring a database's tables up to date."),
}

_LINES_SHOWN: Final = 20


class Commands(TyperGroup):
    """The commands of the table, imported one at a time."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported now; None for an unknown name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), function)
        if isinstance(command, typer.Typer):
            return typer.main.get_command(command)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(cmd_name, context_settings=getattr(command, "context_settings", None))(command)
        return typer.main.get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `--help`, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, _, words) in COMMANDS.items()])


app = typer.Typer(
    cls=Commands,
    name="promptmill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def promptmill() -> None:
    """A queue for prompt jobs: enqueue a million, keep every answer, never exceed a limit."""


def main() -> None:
    """The console script."""
    try:
        app(prog_name="promptmill")
    except PromptmillError as error:
        _show(error)
        sys.exit(2)


def _show(error: PromptmillError) -> None:
    from rich.console import Console  # noqa: PLC0415 - most runs end without an error
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, InputError):
        for line_error in error.errors[:_LINES_SHOWN]:
            console.print(Text(f"  {line_error}"))
        if error.total > _LINES_SHOWN:
            console.print(Text(f"  … and {error.total - _LINES_SHOWN:,} more"))
    console.print(Text.assemble(("error: ", "bold red"), str(error)))
    if isinstance(error, InputError):
        console.print(Text("mend the lines, or run the good ones with --skip-bad-lines"))
