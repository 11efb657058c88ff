"""offsite compress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.profile import DEFAULT, METHODS, Knobs, Text, learn, worth
from offsite.cli.shell import Force, Json, Seed, beside, console, emit, leftovers, output

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from offsite.emulator import Emulator
    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Profile
    from offsite.split import Split

NAME = "compress"
HELP = """Model owner: make the emulator bundle that a data owner may have.

Without a profile one is made on the way; `offsite profile` makes one that serves every budget.

Example: `offsite compress smollm2-135m -o emulator/ --profile profile/ --keep 0.7`
"""


def command(
    model: Annotated[str, typer.Argument(help="A folder, a named model or a hub id.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The emulator bundle to write.")],
    profile: Annotated[Path | None, typer.Option(help="Plan from this, made by `offsite profile`.")] = None,
    method: Annotated[
        str | None, typer.Option(help=f"{METHODS} [default: the profile's, or {DEFAULT}].")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the middle's parameters to store, 0 to 1.")] = 0.7,
    knobs: Knobs = None,
    bottom: Annotated[
        int | None, typer.Option(help="Adapter layers nearest the embeddings [default: the profile's, or 2].")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Adapter layers nearest the head [default: the profile's, or 2].")
    ] = None,
    text: Text = "wikipedia",
    distill: Annotated[int, typer.Option(min=0, help="Align the middle for so many steps; 0: not.")] = 0,
    receipt: Annotated[Path | None, typer.Option(help="Private record [default: OUTPUT-receipt].")] = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Profile, plan, build, save the bundle and the owner's receipt."""
    from offsite import models, tasks
    from offsite.folders import staged
    from offsite.owner.build import build, keep_of
    from offsite.owner.methods.base import check_keep
    from offsite.owner.receipt import write_receipt
    from offsite.training import has_checkpoint

    check_keep(keep)
    read: list[str | Path] = [model, text, *([profile] if profile else [])]
    output(out, force, read)
    private = output(receipt or beside(out, "-receipt"), force, [*read, out])
    chosen, split, learnt = _chosen(profile, method, knobs or [], bottom, top)
    tasks.check_text(text)
    whole, tokenizer = models.load(model)
    with (
        leftovers(beside(out, ".profiling"), worth) as parts,
        leftovers(beside(out, ".distilling"), has_checkpoint) as work,
    ):
        if learnt:
            learnt.check_model(whole)
        learnt = learnt or learn(chosen, whole, tokenizer, split, text, parts)
        blueprint = chosen.plan(learnt, keep)
        emulator = build(whole, split, blueprint, method=chosen.name, tokenizer=tokenizer)
        if distill:
            _distill(emulator, whole, text, distill, seed, work)
        kept = keep_of(emulator, whole)
        with staged(private) as notes, staged(out) as folder:
            emulator.save(folder)
            write_receipt(notes, emulator, blueprint, asked=keep, kept=kept, seed=seed)
    _show(emulator, kept, out, private, json)


def _chosen(
    path: Path | None, method: str | None, knobs: list[str], bottom: int | None, top: int | None
) -> tuple[Method, Split, Profile | None]:
    """The method, the split and the profile at `path`, which says what is not asked for."""
    from offsite.owner.methods import method_named
    from offsite.owner.profile import Profile
    from offsite.split import Split

    if path is None:
        asked = Split(*(2 if count is None else count for count in (bottom, top)))
        return method_named(method or DEFAULT, knobs), asked, None
    profile = Profile.load(path)
    own = profile.knobs if method in (None, profile.method) else {}
    chosen = method_named(method or profile.method, knobs, own)
    chosen.check(profile)
    split = profile.split
    profile.check_split(Split(split.bottom if bottom is None else bottom, split.top if top is None else top))
    return chosen, split, profile


def _distill(emulator: Emulator, model: PreTrainedModel, text: str, steps: int, seed: int, work: Path) -> None:
    from offsite import tasks
    from offsite.owner.distill import DistillConfig, distill
    from offsite.text import blocks

    assert emulator.tokenizer is not None
    config = DistillConfig(steps=steps, seed=seed)
    count = config.steps * config.batch_size
    tokens = blocks(tasks.texts(text), emulator.tokenizer, config.length, None)[:count]
    distill(emulator, model, tokens, config, work=work, resume=True)


def _show(emulator: Emulator, kept: float, out: Path, private: Path, json: bool) -> None:
    def show() -> None:
        say = console().print
        say(
            f"Emulator in {out}: {kept:.1%} of the middle's parameters, by {emulator.method}. Send this folder."
        )
        say(f"Receipt in {private}: it says which layers stand in it. Keep it to yourself.")

    data = {"emulator": str(out), "receipt": str(private), "keep": kept, "digest": emulator.digest}
    emit(data | {"method": emulator.method}, json, show)
