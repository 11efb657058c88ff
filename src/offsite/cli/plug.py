"""offsite plug."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.shell import Force, Json, emit, output

NAME = "plug"
HELP = """Model owner: put a tuned adapter into the full model; writes a plain transformers checkpoint.

Example: `offsite plug smollm2-135m adapter/ -o tuned-model/`
"""


def command(
    model: Annotated[str, typer.Argument(help="The model that the emulator was made from.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter bundle that came back.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Check that the adapter is for this model, plug it in, save."""
    from offsite import checkpoint, models
    from offsite.adapter import Adapter
    from offsite.folders import staged
    from offsite.owner.plug import plug
    from offsite.record import record

    output(out, force)
    tuned = Adapter.load(adapter)
    whole, tokenizer = models.load(model)
    plug(whole, tuned)
    about = {"adapter": tuned.digest, "emulator": tuned.emulator, "record": record(0)}
    with staged(out) as folder:
        checkpoint.write(folder, whole, tokenizer)
        (folder / "offsite.json").write_text(jsonlib.dumps(about, indent=2) + "\n", encoding="utf-8")
    emit(
        {"model": str(out), "adapter": tuned.digest},
        json,
        lambda: typer.echo(f"Tuned model in {out}: a plain transformers checkpoint."),
    )
