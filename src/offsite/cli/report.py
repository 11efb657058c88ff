"""offsite report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.options import Force, Json
from offsite.cli.shell import beside, console, emit, output
from offsite.errors import UserError

NAME = "report"
HELP = """Write one HTML page about what a folder holds: figures, tables and the commands. It opens from disk.

The folder is a comparison, a study, a frontier, a profile, an emulator with its receipt or a tuning, or it has
several of these as subfolders.

Example: `offsite report demo`

Another: `offsite report frontier/ -o frontier.html`
"""

PAGE = "report.html"


def command(
    folder: Annotated[Path, typer.Argument(help="The folder to report on.", metavar="DIR")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The page to write [default: DIR/report.html; for a bundle, in its receipt].",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find what is there, write the page."""
    from offsite.files.atomic import write_text
    from offsite.report.sections import page

    path = _place(folder, out, force)
    write_text(path, page(folder))
    emit({"report": str(path)}, json, lambda: console().print(f"Report: {path}"))


def _place(folder: Path, out: Path | None, force: bool) -> Path:
    """Where the page goes; an earlier page in its own place is drawn again, anything else stays."""
    path = out or _usual(folder)
    if _in_bundle(path):
        raise UserError(
            f"{str(path)!r} is in a bundle, which is sent as it is; name an output elsewhere with -o."
        )
    if path.is_file() and _is_page(path) and (force or out is None):
        return path
    if path.is_file() and _is_page(path):
        raise UserError(f"{str(path)!r} is already there; name another output, or add --force to replace it.")
    return output(path, force=False, file=True)


def _usual(folder: Path) -> Path:
    """In the folder; of a bundle, with its receipt, or else beside."""
    if not (folder / "card.json").is_file():
        return folder / PAGE
    receipt = beside(folder.resolve(), "-receipt")
    if receipt.is_dir():
        return receipt / PAGE
    return beside(folder.resolve(), f"-{PAGE}")


def _in_bundle(path: Path) -> bool:
    return (path.parent / "card.json").is_file()


def _is_page(path: Path) -> bool:
    from offsite.report.page import MARK

    with path.open(encoding="utf-8", errors="replace") as file:
        return MARK in file.read(4096)
