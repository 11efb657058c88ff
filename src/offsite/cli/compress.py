"""offsite compress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.options import Blocks, Force, Json, Length, Model, Seed, Text
from offsite.cli.profile import Knobs, Methods, Profiles, has_parts
from offsite.cli.shell import beside, console, emit, leftovers, outputs, staged_with
from offsite.data import DEFAULT_TEXT

if TYPE_CHECKING:
    from offsite.bundles.emulator import Emulator

NAME = "compress"
HELP = """Model owner: compress a model into an emulator bundle to send to a data owner.

Without `--profile` the model is profiled first. A profile saved by `offsite profile` serves every `--keep`.

Example: `offsite compress smollm2-135m -o emulator/ --profile profile/ --keep 0.7`

Another: `offsite compress smollm2-135m -o emulator/ --profile scaleot-profile/ --alpha 0.25 --beta 0.8`
"""


_NEAR = 0.03  # of the middle: whole layers cannot come nearer to what is asked for
Keep = Annotated[
    float,
    typer.Option(help="Share of the middle's parameters to store, 0 to 1; not used by src or with --alpha."),
]
Alpha = Annotated[float | None, typer.Option(help="scaleot: share of layers to replace; overrides --keep.")]
Beta = Annotated[float | None, typer.Option(help="scaleot, src: share of attention's rank to keep.")]
Bottom = Annotated[
    int | None, typer.Option(help="Adapter layers nearest the embeddings [default: the profile's, or 2].")
]
Top = Annotated[
    int | None, typer.Option(help="Adapter layers nearest the head [default: the profile's, or 2].")
]


def command(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--output", help="The emulator bundle to write.")],
    profiles: Profiles = None,
    method: Methods = None,
    keep: Keep = 0.7,
    alpha: Alpha = None,
    beta: Beta = None,
    knobs: Knobs = None,
    bottom: Bottom = None,
    top: Top = None,
    text: Text = DEFAULT_TEXT,
    blocks: Blocks = None,
    length: Length = None,
    distill: Annotated[
        int,
        typer.Option(min=0, help="Then train the middle to match the model's for this many steps; 0: do not."),
    ] = 0,
    receipt: Annotated[
        Path | None, typer.Option(help="Folder for your private record [default: OUTPUT-receipt].")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Profile, plan, build, save the bundle and the owner's receipt."""
    read: list[str | Path] = [model, *text.split(","), *(profiles or [])]
    private = outputs(out, receipt, force, read)
    from offsite.model import loading
    from offsite.model.split import Split
    from offsite.owner.compress import compress, resolve, split_of
    from offsite.owner.methods.base import check_keep
    from offsite.owner.profile import Profile

    check_keep(keep)
    asked = [f"{name}={value}" for name, value in (("alpha", alpha), ("beta", beta)) if value is not None]
    loaded = [Profile.load(folder) for folder in profiles or []]
    methods = resolve(method, loaded, [*(knobs or []), *asked], seed)
    usual = split_of(loaded)
    cut = Split(usual.bottom if bottom is None else bottom, usual.top if top is None else top)
    split_of(loaded, cut)
    whole, tokenizer = loading.load(model)
    with _work(out, [each.name for each in methods]) as work:
        made = compress(
            whole, tokenizer, methods, keep,
            split=cut, profiles=loaded, text=text, distill=distill, seed=seed, work=work,
            blocks=blocks, length=length,
        )  # fmt: skip
        with staged_with(private, out) as (notes, folder):
            made.write(folder, notes)
    if made.budgeted and abs(made.kept - keep) > _NEAR:
        name = made.emulator.method
        typer.echo(
            f"{keep:.0%} were asked for; the nearest that {name} makes of this is {made.kept:.1%}.",
            err=True,
        )
    _show(made.emulator, made.kept, out, private, json)


@contextmanager
def _work(out: Path, names: list[str]) -> Iterator[dict[str, Path]]:
    """Yield the folders from which interrupted work goes on: one for each method, one for distilling."""
    from offsite.owner.compress import DISTILL
    from offsite.training.checkpoint import has_checkpoint

    endings = {name: f".profiling-{name}" if len(names) > 1 else ".profiling" for name in names}
    with ExitStack() as hold:
        yield {
            **{n: hold.enter_context(leftovers(beside(out, end), has_parts)) for n, end in endings.items()},
            DISTILL: hold.enter_context(leftovers(beside(out, ".distilling"), has_checkpoint)),
        }


def _show(emulator: Emulator, kept: float, out: Path, private: Path, json: bool) -> None:
    def show() -> None:
        say = console().print
        say(
            f"Emulator in {out}: {kept:.1%} of the middle's parameters, by {emulator.method}. Send this folder."
        )
        say(f"Receipt in {private}: your private record of which layers were kept. Never send it.")

    data = {"emulator": str(out), "receipt": str(private), "keep": kept, "digest": emulator.digest}
    emit(data | {"method": emulator.method}, json, show)
