"""offsite compress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.options import Force, Json, Model, Seed, Text
from offsite.cli.profile import DEFAULT, Knobs, Methods, Profiles, worth
from offsite.cli.shell import beside, console, emit, leftovers, outputs, staged_with
from offsite.owner.learn import learn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.bundles.emulator import Emulator
    from offsite.model.split import Split
    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Profile
    from offsite.owner.stages import Stage

NAME = "compress"
HELP = """Model owner: make the emulator bundle that a data owner may have.

Without a profile one is made on the way; `offsite profile` makes one that serves every budget.

Example: `offsite compress smollm2-135m -o emulator/ --profile profile/ --keep 0.7`

Another: `offsite compress smollm2-135m -o emulator/ --profile scaleot-profile/ --alpha 0.25 --beta 0.8`
"""


_NEAR = 0.03  # of the middle: whole layers cannot come nearer to what is asked for
Keep = Annotated[
    float, typer.Option(help="Share of the middle's parameters to store, 0 to 1; src and --alpha go without.")
]
Alpha = Annotated[
    float | None, typer.Option(help="scaleot: the share of layers to replace, whatever --keep says.")
]
Beta = Annotated[float | None, typer.Option(help="scaleot, src: the share of attention's rank that stays.")]
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
    text: Text = "wikipedia",
    distill: Annotated[int, typer.Option(min=0, help="Align the middle for so many steps; 0: not.")] = 0,
    receipt: Annotated[Path | None, typer.Option(help="Private record [default: OUTPUT-receipt].")] = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Profile, plan, build, save the bundle and the owner's receipt."""
    read: list[str | Path] = [model, text, *(profiles or [])]
    private = outputs(out, receipt, force, read)
    from offsite.data import tasks
    from offsite.model import loading
    from offsite.owner.build import build, keep_of
    from offsite.owner.distill import align
    from offsite.owner.methods.base import check_keep
    from offsite.owner.receipt import write_receipt
    from offsite.owner.stages import plan
    from offsite.training.loop import has_checkpoint

    check_keep(keep)
    asked = [f"{name}={value}" for name, value in (("alpha", alpha), ("beta", beta)) if value is not None]
    chosen, split = _chosen(profiles or [], method, [*(knobs or []), *asked], seed, bottom, top)
    whole, tokenizer = loading.load(model)
    with (
        _profiling(out, [one.name for one, _ in chosen]) as parts,
        leftovers(beside(out, ".distilling"), has_checkpoint) as work,
    ):
        stages = _learnt(chosen, whole, tokenizer, split, text, parts)
        blueprint = plan(stages, keep)
        name = "+".join(one.name for one, _ in stages)
        emulator = build(whole, split, blueprint, method=name, tokenizer=tokenizer)
        if distill:
            align(emulator, whole, tasks.texts(text), steps=distill, seed=seed, work=work)
        kept = keep_of(emulator, whole)
        with staged_with(private, out) as (notes, folder):
            emulator.save(folder)
            write_receipt(notes, emulator, blueprint, asked=keep, kept=kept, seed=seed)
    if any(one.budgeted for one, _ in stages) and abs(kept - keep) > _NEAR:
        typer.echo(f"{keep:.0%} were asked for; the nearest that {name} makes of this is {kept:.1%}.", err=True)
    _show(emulator, kept, out, private, json)


def _chosen(
    folders: list[Path], method: str | None, knobs: list[str], seed: int, bottom: int | None, top: int | None
) -> tuple[list[tuple[Method, Profile | None]], Split]:
    """The methods in their order, each with its profile if there is one, and the split that profiles say."""
    from offsite.errors import UserError
    from offsite.model.split import Split
    from offsite.owner.methods import before, chain
    from offsite.owner.profile import Profile

    profiles = [Profile.load(folder) for folder in folders]
    words = method.split("+") if method else [p.method for p in profiles] or [DEFAULT]
    if len({p.method for p in profiles}) < len(profiles):
        raise UserError(f"Several profiles are of {profiles[0].method}; give one for each method.")
    methods = chain(words, knobs, before(words, seed, profiles))
    for profile in profiles:
        next((one for one in methods if one.name == profile.method), methods[0]).check(profile)
    split = profiles[0].split if profiles else Split()
    asked = Split(split.bottom if bottom is None else bottom, split.top if top is None else top)
    for profile in profiles:
        profile.check_split(asked)
    return [(one, next((p for p in profiles if p.method == one.name), None)) for one in methods], asked


@contextmanager
def _profiling(out: Path, names: list[str]) -> Iterator[dict[str, Path]]:
    """For each method the folder from which its interrupted profile goes on, not that of another."""
    with ExitStack() as hold:
        endings = {name: f".profiling-{name}" if len(names) > 1 else ".profiling" for name in names}
        yield {n: hold.enter_context(leftovers(beside(out, end), worth)) for n, end in endings.items()}


def _learnt(
    chosen: list[tuple[Method, Profile | None]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    text: str,
    parts: Mapping[str, Path],
) -> list[Stage]:
    """Each method with its profile, made now where there is none, its parts in a folder of its own."""
    for _, profile in chosen:
        if profile:
            profile.check_model(model)

    def made(method: Method) -> Profile:
        return learn(method, model, tokenizer, split, text, parts[method.name])

    return [(method, profile or made(method)) for method, profile in chosen]


def _show(emulator: Emulator, kept: float, out: Path, private: Path, json: bool) -> None:
    def show() -> None:
        say = console().print
        say(
            f"Emulator in {out}: {kept:.1%} of the middle's parameters, by {emulator.method}. Send this folder."
        )
        say(f"Receipt in {private}: it says which layers stand in it. Keep it to yourself.")

    data = {"emulator": str(out), "receipt": str(private), "keep": kept, "digest": emulator.digest}
    emit(data | {"method": emulator.method}, json, show)
