"""offsite profile."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.options import Blocks, Force, Json, Length, Model, Seed, Text
from offsite.cli.shell import beside, console, emit, leftovers, output
from offsite.data import DEFAULT_TEXT
from offsite.owner.methods import DEFAULT, METHODS

if TYPE_CHECKING:
    from offsite.owner.profile import Profile

NAME = "profile"
HELP = """Model owner: measure a model with a compression method, once for every budget.

After an interruption the same command resumes.

Example: `offsite profile smollm2-135m --method gradot --text mixture:-arc_easy -o profile/`

Another: `offsite profile smollm2-135m --method scaleot --steps 300 -o scaleot-profile/`
"""

_NAMES = ", ".join(METHODS)
Profiles = Annotated[
    list[Path] | None,
    typer.Option("--profile", help="Use this profile, saved by `offsite profile`; may be repeated."),
]
Methods = Annotated[
    str | None,
    typer.Option(help=f"{_NAMES}; or a chain, as scaleot+gradot [default: the profiles', or {DEFAULT}]."),
]
Knobs = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a knob of the method, as rank=64; `offsite methods NAME` lists its knobs."),
]


def command(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--output", help="The profile folder to write; it is private.")],
    method: Annotated[str | None, typer.Option(help=f"{_NAMES} [default: {DEFAULT}].")] = None,
    knobs: Knobs = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps, for methods that train [default: the method's].")
    ] = None,
    text: Text = DEFAULT_TEXT,
    blocks: Blocks = None,
    length: Length = None,
    bottom: Annotated[int, typer.Option(help="Adapter layers nearest the embeddings.")] = 2,
    top: Annotated[int, typer.Option(help="Adapter layers nearest the head.")] = 2,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read the text, profile, save."""
    output(out, force, [model, *text.split(",")])
    from offsite.files.atomic import staged
    from offsite.model import loading
    from offsite.model.split import Split
    from offsite.owner.compress import profile_of
    from offsite.owner.methods import method_named, seeded

    asked = [*(knobs or ()), *([] if steps is None else [f"steps={steps}"])]
    name = method or DEFAULT
    chosen, split = method_named(name, asked, seeded(name, seed)), Split(bottom, top)
    whole, tokenizer = loading.load(model)
    with leftovers(beside(out, ".profiling"), has_parts) as work:
        made = profile_of(whole, tokenizer, chosen, split, text=text, work=work, blocks=blocks, length=length)
        with staged(out) as folder:
            made.save(folder, text=text, seed=seed)
            report = _report(made, folder / "report.html", model, text)
    _show(made, model, out, text, json, report and out / report.name)


def has_parts(work: Path) -> bool:
    """Tell whether an interrupted profile left a part to go on from."""
    from offsite.owner.parts import Parts

    return bool(Parts(work).names)


def _report(profile: Profile, path: Path, model: str, text: str) -> Path | None:
    """Write the page of a profile whose method trained; None where there was no training, or no plotly."""
    from importlib.util import find_spec

    from offsite.owner.methods import training_of

    curves = training_of(profile)
    if curves is None:
        return None
    if find_spec("plotly") is None:  # the profile is complete without it
        typer.echo("No report: that needs plotly, `pip install 'offsite[report]'`.", err=True)
        return None
    from offsite.data.tasks import label
    from offsite.report.training import write_training

    name, split = Path(model).resolve().name, profile.split  # a page that names no folder of this machine
    facts = {"Model": name, "Method": profile.method, "Middle layers": str(len(profile.middle))}
    facts |= {"Adapter layers": f"{split.bottom} bottom, {split.top} top", "Text": label(text)}
    for knob in ("steps", "rank", "seed"):
        facts |= {knob.capitalize(): str(profile.knobs[knob])} if knob in profile.knobs else {}
    return write_training(path, title=name, layers=profile.middle, facts=facts, **curves.lists())


def _show(profile: Profile, model: str, out: Path, text: str, json: bool, report: Path | None) -> None:
    size = sum(file.stat().st_size for file in out.iterdir() if file != report)
    data: dict[str, object] = {
        "profile": str(out),
        "method": profile.method,
        "bytes": size,
        "parent": profile.parent,
    }
    if report:
        data["report"] = str(report)

    def show() -> None:
        read = "no text"
        if profile.calibration:
            read = "{} blocks of {} tokens of {}".format(*profile.calibration, text)
        say = console().print
        say(
            f"Profile in {out}, {size / 1e6:,.2f} MB: what {profile.method} measured, from {read}. It serves "
            "any --keep, and tells much of the model's weights: keep it to yourself."
        )
        if report:
            say(f"Report, yours as well: {report}")
        words = ["offsite", "compress", model, "--profile", str(out), "-o", str(beside(out, "-emulator"))]
        say(f"Next: {shlex.join(words)} --keep 0.7")

    emit(data | {"calibration": profile.calibration}, json, show)
