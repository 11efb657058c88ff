"""offsite compress."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.shell import Force, Json, Seed, console, emit, output

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.emulator import Emulator
    from offsite.owner.blueprint import Blueprint
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
    from offsite.owner.build import build
    from offsite.owner.methods import method_named
    from offsite.owner.methods.base import check_keep
    from offsite.split import Split

    chosen, split = method_named(method), Split(bottom, top)
    check_keep(keep)
    private = output(receipt or out.with_name(f"{out.name}-receipt"), force)
    output(out, force)
    whole, tokenizer = models.load(model)
    blueprint = chosen.plan(_profile(chosen, whole, tokenizer, split, text), keep)
    emulator = build(whole, split, blueprint, method=method, tokenizer=tokenizer)
    if distill:
        _distill(emulator, whole, text, distill, seed, out)
    emulator.save(out)
    _report(emulator, whole, blueprint, keep, seed, out, private, json)


def _profile(
    method: Method, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, text: str
) -> Profile:
    from offsite import tasks
    from offsite.text import blocks

    if method.calibration is None:
        return method.profile(model, split)
    count, length = method.calibration
    return method.profile(model, split, blocks(tasks.texts(text), tokenizer, length, count))


def _distill(emulator: Emulator, model: PreTrainedModel, text: str, steps: int, seed: int, out: Path) -> None:
    from offsite import tasks
    from offsite.owner.distill import DistillConfig, distill
    from offsite.text import blocks

    assert emulator.tokenizer is not None
    config = DistillConfig(steps=steps, seed=seed)
    count = config.steps * config.batch_size
    tokens = blocks(tasks.texts(text), emulator.tokenizer, config.length, None)[:count]
    work = out.with_name(f".{out.name}.distilling")
    distill(emulator, model, tokens, config, work=work, resume=True)
    shutil.rmtree(work)


def _report(
    emulator: Emulator,
    model: PreTrainedModel,
    blueprint: Blueprint,
    asked: float,
    seed: int,
    out: Path,
    private: Path,
    json: bool,
) -> None:
    from offsite.owner.build import keep_of
    from offsite.owner.receipt import write_receipt

    kept = keep_of(emulator, model)
    write_receipt(private, emulator, blueprint, asked=asked, kept=kept, seed=seed)

    def show() -> None:
        say = console().print
        say(
            f"Emulator in {out}: {kept:.1%} of the middle's parameters, by {emulator.method}. Send this folder."
        )
        say(f"Receipt in {private}: it says which layers stand in it. Keep it to yourself.")

    data = {"emulator": str(out), "receipt": str(private), "keep": kept, "digest": emulator.digest}
    emit(data | {"method": emulator.method}, json, show)
