"""offsite compress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.shell import Force, Json, Seed, beside, console, emit, leftovers, output

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.emulator import Emulator
    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Profile
    from offsite.split import Split

NAME = "compress"
HELP = """Model owner: make the emulator bundle that a data owner may have.

Example: `offsite compress smollm2-135m -o emulator/ --method uniform --keep 0.7`
"""


def command(
    model: Annotated[str, typer.Argument(help="A folder, a named model or a hub id.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The emulator bundle to write.")],
    method: Annotated[str, typer.Option(help="uniform or crash.")] = "uniform",
    keep: Annotated[float, typer.Option(help="Share of the middle's parameters to store, 0 to 1.")] = 0.7,
    knobs: Annotated[
        list[str] | None, typer.Option("--set", help="A knob of the method, as crash's share=false.")
    ] = None,
    bottom: Annotated[int, typer.Option(help="Adapter layers nearest the embeddings.")] = 2,
    top: Annotated[int, typer.Option(help="Adapter layers nearest the head.")] = 2,
    text: Annotated[str, typer.Option(help="Public text: wikipedia, wikitext2 or a file.")] = "wikipedia",
    distill: Annotated[int, typer.Option(min=0, help="Align the middle for so many steps; 0: not.")] = 0,
    receipt: Annotated[Path | None, typer.Option(help="Private record [default: OUTPUT-receipt].")] = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Profile, plan, build, save the bundle and the owner's receipt."""
    from offsite import models
    from offsite.folders import staged
    from offsite.owner.build import build, keep_of
    from offsite.owner.methods import method_named
    from offsite.owner.methods.base import check_keep
    from offsite.owner.receipt import write_receipt
    from offsite.split import Split
    from offsite.training import has_checkpoint

    chosen, split = method_named(method, knobs or ()), Split(bottom, top)
    check_keep(keep)
    output(out, force, [model, text])
    private = output(receipt or beside(out, "-receipt"), force, [model, text, out])
    whole, tokenizer = models.load(model)
    blueprint = chosen.plan(_profile(chosen, whole, tokenizer, split, text), keep)
    emulator = build(whole, split, blueprint, method=method, tokenizer=tokenizer)
    with leftovers(beside(out, ".distilling"), has_checkpoint) as work:
        if distill:
            _distill(emulator, whole, text, distill, seed, work)
        kept = keep_of(emulator, whole)
        with staged(private) as notes, staged(out) as folder:
            emulator.save(folder)
            write_receipt(notes, emulator, blueprint, asked=keep, kept=kept, seed=seed)
    _show(emulator, kept, out, private, json)


def _profile(
    method: Method, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, text: str
) -> Profile:
    from offsite import tasks
    from offsite.text import blocks

    if method.calibration is None:
        return method.profile(model, split)
    count, length = method.calibration
    return method.profile(model, split, blocks(tasks.texts(text), tokenizer, length, count))


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
