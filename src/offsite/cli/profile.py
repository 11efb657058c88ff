"""offsite profile."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.shell import Force, Json, Seed, beside, console, emit, leftovers, output

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Profile
    from offsite.split import Split

NAME = "profile"
HELP = """Model owner: let a method learn about the model, once for every budget.

Interrupted, the same command goes on where it stopped.

Example: `offsite profile smollm2-135m --method gradot --text wikipedia -o profile/`
"""

METHODS, DEFAULT = "gradot, uniform, crash or svd", "gradot"
"""What owner.methods has, which is too much to import for a --help; tests hold the two together."""
Knobs = Annotated[list[str] | None, typer.Option("--set", help="A knob of the method, as gradot's form=paper.")]
Text = Annotated[str, typer.Option(help="Public text: wikipedia, wikitext2 or a file.")]


def command(
    model: Annotated[str, typer.Argument(help="A folder, a named model or a hub id.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The profile to write; it stays with you.")],
    method: Annotated[str | None, typer.Option(help=f"{METHODS} [default: {DEFAULT}].")] = None,
    knobs: Knobs = None,
    text: Text = "wikipedia",
    blocks: Annotated[
        int | None, typer.Option(min=1, help="Blocks of text to read [default: the method's].")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a block [default: the method's].")
    ] = None,
    bottom: Annotated[int, typer.Option(help="Adapter layers nearest the embeddings.")] = 2,
    top: Annotated[int, typer.Option(help="Adapter layers nearest the head.")] = 2,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read the text, let the method learn, save."""
    from offsite import models, tasks
    from offsite.owner.methods import method_named
    from offsite.split import Split

    chosen, split = method_named(method or DEFAULT, knobs or ()), Split(bottom, top)
    output(out, force, [model, text])
    tasks.check_text(text)
    whole, tokenizer = models.load(model)
    with leftovers(beside(out, ".profiling"), worth) as work:
        learnt = learn(chosen, whole, tokenizer, split, text, work, blocks, length)
        learnt.save(out, text=text, seed=seed)
    _show(learnt, model, out, text, json)


def learn(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    text: str,
    work: Path | None = None,
    blocks: int | None = None,
    length: int | None = None,
) -> Profile:
    """The profile of `model`, from so many `blocks` of `text`, going on from what is in `work`, if given."""
    from offsite import tasks
    from offsite.decoder import Decoder, check_length, longest
    from offsite.text import blocks as cut

    split.middle(len(Decoder.of(model)))  # what cannot be cut is refused before any text is read
    if method.calibration is None:
        return method.profile(model, split, work=work)
    count, usual = method.calibration
    length = length or min(usual, longest(model))
    check_length(model, length)
    return method.profile(model, split, cut(tasks.texts(text), tokenizer, length, blocks or count), work)


def worth(work: Path) -> bool:
    """Whether there is a part that an interrupted profile goes on from."""
    from offsite.owner.profile import Findings

    return bool(Findings(work).parts)


def _show(profile: Profile, model: str, out: Path, text: str, json: bool) -> None:
    size = sum(file.stat().st_size for file in out.iterdir())
    data: dict[str, Any] = {
        "profile": str(out),
        "method": profile.method,
        "bytes": size,
        "parent": profile.parent,
    }

    def show() -> None:
        read = "no text"
        if profile.calibration:
            read = "{} blocks of {} tokens of {}".format(*profile.calibration, text)
        say = console().print
        say(
            f"Profile in {out}, {size / 1e6:,.2f} MB: what {profile.method} learnt, from {read}. It is good "
            "for any --keep, and tells much of the model's weights: keep it to yourself."
        )
        words = ["offsite", "compress", model, "--profile", str(out), "-o", str(beside(out, "-emulator"))]
        say(f"Next: {shlex.join(words)} --keep 0.7")

    emit(data | {"calibration": profile.calibration}, json, show)
