"""`promptmill simulate`: hands everything to the simulator's own command line."""

import typer

from cli.simulate.__main__ import main


def simulate(context: typer.Context) -> None:
    """An OpenAI/Together-shaped endpoint to rehearse against."""
    raise typer.Exit(main(context.args, prog="promptmill simulate"))


simulate.context_settings = {  # type: ignore[attr-defined]  # read by cli/main.py
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}
