"""offsite demo."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.shell import INTERRUPTED, output
from offsite.errors import UserError

NAME = "demo"
HELP = """Run the whole story on a real model and real data. Each command is printed before it runs.

Example: `offsite demo --quick`
"""


def command(
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything that it makes.")] = Path(
        "demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Take one minute instead of four, with fewer steps and questions.")
    ] = False,
) -> None:
    """Run the commands of the story, one after the other, in this process."""
    from offsite.cli import app
    from offsite.files.atomic import write_text
    from offsite.provenance import calling

    _fresh(out)
    write_text(out / "demo.json", '{"made by": "offsite demo"}\n')
    for words in story(out, quick):
        sys.stderr.write(f"\n$ {shlex.join(['offsite', *words])}\n")
        with calling(["offsite", *words]):
            _once(app, words)


def _once(app: typer.Typer, words: list[str]) -> None:
    if app(args=words, standalone_mode=False) == INTERRUPTED:  # typer has caught it, and says so thus
        raise KeyboardInterrupt


def story(out: Path, quick: bool) -> list[list[str]]:
    """The commands of the story, written into the folder `out`."""
    model, steps, limit = "smollm2-135m", "4" if quick else "60", "12" if quick else "150"
    profile, emulator = str(out / "profile"), str(out / "emulator")
    adapter, tuned = str(out / "adapter"), str(out / "tuned-model")
    asked = ["--tasks", "arc_easy", "--limit", limit]
    budget = ["--steps", steps]
    read = ["--method", "gradot", "--text", "mixture:-arc_easy"]  # which is tuned on and scored
    return [
        ["fetch", model],
        ["profile", model, "-o", profile, *read, *(["--blocks", "8"] if quick else [])],
        ["compress", model, "-o", emulator, "--profile", profile, "--keep", "0.7"],
        ["inspect", emulator],
        ["tune", emulator, "--data", "arc_easy", "-o", adapter, *budget],
        ["plug", model, adapter, "-o", tuned],
        ["evaluate", tuned, *asked, "-o", str(out / "scores.json")],
        ["compare", model, emulator, *asked, *budget, "-o", str(out / "comparison")],
        ["report", str(out)],
    ]


def _fresh(out: Path) -> None:
    """Clear away an earlier demo, and nothing else."""
    output(out, force=True)
    if out.is_dir() and any(out.iterdir()):
        if not (out / "demo.json").exists():
            raise UserError(f"{str(out)!r} holds other things than an earlier demo; name another output.")
        shutil.rmtree(out)
