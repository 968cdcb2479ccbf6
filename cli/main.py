"""The terminal door: every command, and how errors are shown. Exit 2 is always the caller's to mend."""

import sys

import typer
from rich.console import Console
from rich.text import Text

from cli.doctor import doctor
from cli.results import results
from cli.run import run
from cli.status import status
from cli.submit import cancel, resume, submit
from cli.watch import watch
from promptmill.errors import InputError, PromptmillError

app = typer.Typer(
    name="promptmill",
    help="A queue for prompt jobs: enqueue a million, keep every answer, never exceed a limit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run)
app.command("status")(status)
app.command("results")(results)
app.command("submit")(submit)
app.command("watch")(watch)
app.command("cancel")(cancel)
app.command("resume")(resume)
app.command("doctor")(doctor)


@app.command(
    "simulate",
    help="An OpenAI/Together-shaped endpoint to rehearse against. See: promptmill simulate --help",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def simulate(context: typer.Context) -> None:
    """Hand everything to the simulator's own command line."""
    from cli.simulate.__main__ import main as run_simulator  # noqa: PLC0415 - a web server that no other command needs

    raise typer.Exit(run_simulator(context.args, prog="promptmill simulate"))


_LINES_SHOWN = 20


def main() -> None:
    """The console script."""
    try:
        app()
    except PromptmillError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        if isinstance(error, InputError):
            for line_error in error.errors[:_LINES_SHOWN]:
                console.print(Text(f"  {line_error}"))
            if error.total > _LINES_SHOWN:
                console.print(Text(f"  … and {error.total - _LINES_SHOWN:,} more"))
        console.print(Text.assemble(("error: ", "bold red"), str(error)))
        if isinstance(error, InputError):
            console.print(Text("mend the lines, or run the good ones with --skip-bad-lines"))
        sys.exit(2)
