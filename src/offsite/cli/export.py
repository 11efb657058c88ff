"""offsite export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.options import EmulatorBundle, Force, Json, Large
from offsite.cli.shell import emit, mark, output

NAME = "export"
HELP = """Write an emulator bundle as a dense transformers checkpoint.

An emulator with harmonizers (of `scaleot`) is refused: transformers has no module for them.

Example: `offsite export emulator/ -o dense/`
"""


def command(
    emulator: EmulatorBundle,
    out: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    allow_large: Large = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Open the bundle, write every place out in full."""
    output(out, force, [emulator])
    from offsite.bundles.emulator import Emulator
    from offsite.files.atomic import staged

    opened = Emulator.load(emulator, allow_large=allow_large)
    with staged(out) as folder:
        opened.export(folder)
        mark(folder, {"emulator": opened.digest})
    emit({"model": str(out)}, json, lambda: typer.echo(f"Plain transformers checkpoint in {out}."))
