"""offsite plug."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.shell import Force, Json, emit, mark, output

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

    output(out, force, [model, adapter])
    tuned = Adapter.load(adapter)
    whole, tokenizer = models.load(model)
    plug(whole, tuned)
    with staged(out) as folder:
        checkpoint.write(folder, whole, tokenizer)
        mark(folder, {"adapter": tuned.digest, "emulator": tuned.emulator})
    emit(
        {"model": str(out), "adapter": tuned.digest},
        json,
        lambda: typer.echo(f"Tuned model in {out}: a plain transformers checkpoint."),
    )
