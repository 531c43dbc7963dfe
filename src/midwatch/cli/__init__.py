"""What can I do? One file per group of verbs; each has a `register(app)` and imports heavy parts only when it runs."""

from __future__ import annotations

import sys

import typer

from midwatch import __version__
from midwatch.cli import (
    app,
    bench,
    calibrate,
    doctor,
    evaluate,
    feedback,
    foundry,
    models,
    runbooks,
    schedule,
    serve,
    triage,
    tune,
    up,
)
from midwatch.errors import MidwatchError

cli = typer.Typer(
    name="midwatch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Stand the middle watch: alerts and logs in, a cited and honest diagnosis out.",
)
for verbs in (
    up,
    triage,
    doctor,
    models,
    serve,
    tune,
    evaluate,
    bench,
    schedule,
    app,
    foundry,
    runbooks,
    feedback,
    calibrate,
):
    verbs.register(cli)


@cli.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(f"midwatch {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. A `MidwatchError` becomes two plain sentences on stderr and exit code 2."""
    try:
        cli()
    except MidwatchError as error:
        typer.secho(f"midwatch: {error.what}", fg="red", err=True)
        if error.next_step:
            typer.echo(f"  {error.next_step}", err=True)
        sys.exit(2)
