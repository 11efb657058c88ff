"""The command line: one thin file for each command."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from offsite import provenance
from offsite.cli import (
    compare,
    compress,
    demo,
    doctor,
    evaluate,
    export,
    fetch,
    frontier,
    inspect,
    keygen,
    methods,
    plug,
    profile,
    report,
    shell,
    sign,
    tune,
    verify,
)

app = typer.Typer(
    name="offsite",
    help="Tune a language model you may not see, on data you may not share.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (
    fetch,
    methods,
    profile,
    compress,
    inspect,
    tune,
    plug,
    evaluate,
    compare,
    frontier,
    report,
    export,
    keygen,
    sign,
    verify,
    doctor,
    demo,
):
    app.command(module.NAME, help=module.HELP)(module.command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"offsite {provenance.versions(('offsite',))['offsite']}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """The entry point `offsite`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` and `timeout` leave nothing half-written
    sys.exit(shell.run(app))
