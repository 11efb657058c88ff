"""offsite frontier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.grid_profiles import GridProfiles
from offsite.cli.options import (
    Epochs,
    Force,
    Json,
    Limit,
    Model,
    Rank,
    Rate,
    Seed,
    Stages,
    Tasks,
    Text,
    Train,
    words,
)
from offsite.cli.profile import Knobs, Methods, Profiles, has_parts
from offsite.cli.shell import beside, console, emit, output, stages
from offsite.cli.tables import frontier_table
from offsite.data import DEFAULT_TEXT
from offsite.files.atomic import staged, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.experiments.frontier import Frontier, Wish
    from offsite.experiments.frontier.grid import Grid
    from offsite.owner.profile import Profile

NAME = "frontier"
HELP = """Choose an emulator to send: make many, score some, and select by `--min-gap` and `--max-loss`.

Every emulator is estimated by its gradients and loss on public text. Up to `--score` of them are tuned and
scored: the smallest and the largest first, then by halving. It needs the full model and the data in one place,
so it is for experiments on public data. After an interruption the same command resumes.

Example: `offsite frontier smollm2-135m --profile profile/ --tasks arc_easy --min-gap 40% --max-loss 5% -o f/`

Another: `offsite frontier smollm2-135m --method scaleot --alphas 0.25,0.5 --betas 0.6,1 --tasks arc_easy -o f/`
"""

Keeps = Annotated[
    str | None,
    typer.Option(help="Shares of the middle to store, separated by commas [default: 0.5,0.6,0.7,0.8]."),
]
Alphas = Annotated[
    str | None, typer.Option(help="scaleot: shares of layers to replace [default: 0.25,0.375,0.5].")
]
Betas = Annotated[
    str | None,
    typer.Option(help="Shares of attention's rank to keep [scaleot: 0.6,0.8,1; src: 0.3,0.5,0.7,0.9]."),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(help="A knob and the values to try, as lambda_channels=0,0.1 of gradot; may be repeated."),
]
Splits = Annotated[
    str | None,
    typer.Option(
        help="Bottom + top adapter layers to try, as 2+2,1+3; each without a profile is profiled first."
    ),
]
Blocks = Annotated[int, typer.Option(min=1, help="Number of blocks, from the text's end, for the estimates.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens in a block of --blocks.")]
ProfileBlocks = Annotated[
    int | None, typer.Option(min=1, help="Number of text blocks for a profile that this command makes.")
]
ProfileLength = Annotated[int | None, typer.Option(min=2, help="Tokens in a block of --profile-blocks.")]
Most = Annotated[int, typer.Option("--score", min=1, help="Maximum number of emulators to tune and score.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Maximum number of optimizer steps of each tuning [default: 150, without --epochs]."),
]
Gap = Annotated[
    str | None,
    typer.Option(
        help="Select: the tuned emulator is at least so much worse than plugged in: nats of choice nll (0.1), "
        "or a share of fine-tuning's gain in it (40%); of answer nll where no task has choices."
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(help="Select: plugged in is at most so much worse than fine-tuned, likewise (0.02 or 5%)."),
]


def command(
    model: Model,
    task_names: Tasks,
    out: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for results, report and the selected emulator.")
    ],
    profiles: Profiles = None,
    method: Methods = None,
    keeps: Keeps = None,
    alphas: Alphas = None,
    betas: Betas = None,
    vary: Vary = None,
    knobs: Knobs = None,
    splits: Splits = None,
    min_gap: Gap = None,
    max_loss: Loss = None,
    most: Most = 6,
    text: Text = DEFAULT_TEXT,
    blocks: Blocks = 16,
    length: Length = 128,
    profile_blocks: ProfileBlocks = None,
    profile_length: ProfileLength = None,
    train: Train = None,
    limit: Limit = None,
    epochs: Epochs = None,
    steps: Steps = None,
    lr: Rate = None,
    lora_rank: Rank = None,
    seed: Seed = 0,
    cache: Stages = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Estimate the grid, score, answer; write frontier.json, report.html and the emulator that is chosen."""
    named = words(task_names)
    data = train or named[0]
    output(out, force, [model, *text.split(","), *(profiles or []), *named, data, *([cache] if cache else [])])
    from offsite.data import tasks
    from offsite.data_owner.config import TuneConfig
    from offsite.experiments.compare import Experiment
    from offsite.experiments.frontier import explore
    from offsite.model import loading

    text = tasks.without(text, [*named, data])
    wish = _wish(min_gap, max_loss)
    config = TuneConfig(epochs=epochs, steps=_steps(steps, epochs), lr=lr, lora_rank=lora_rank, seed=seed)
    loaded, varied = _loaded(profiles or []), _varied(vary or [], alpha=alphas, beta=betas)
    grid = _grid(method, list(loaded.values()), knobs or [], varied, keeps, splits, seed)
    about: dict[str, object] = {"model": model, "method": "+".join(grid.words), "tasks": named}
    about |= {"train": data, "limit": limit, "tuning": asdict(config), "text": text, "blocks": [blocks, length]}
    experiment = Experiment.of(named, data, config, limit)
    whole, tokenizer = loading.load(model)
    tokens = _tokens(whole, tokenizer, text, length, blocks)
    with stages(cache, beside(out, ".frontier"), _resumable) as work:
        serve = GridProfiles(loaded, whole, tokenizer, text, profile_blocks, profile_length, work)
        candidates = [serve.candidate(grid, point) for point in grid.settings()]
        found = explore(whole, tokenizer, candidates, tokens, experiment, work=work, most=most, wish=wish)
        results = _results(about, found, text, seed)
        _write(results, found, serve, grid, out)
    emit(results, json, lambda: _show(results, found, out))


def _steps(steps: int | None, epochs: float | None) -> int | None:
    return 150 if steps is None and epochs is None else steps  # a frontier tunes many


def _loaded(folders: list[Path]) -> dict[Path, Profile]:
    from offsite.owner.profile import Profile

    return {folder: Profile.load(folder) for folder in folders}


def _tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, length: int, blocks: int
) -> Tensor:
    from offsite.data import tasks
    from offsite.model.decoder import check_length
    from offsite.owner.fidelity import held_out

    check_length(model, length)
    return held_out(tasks.texts(text), tokenizer, length, blocks)


def _wish(min_gap: str | None, max_loss: str | None) -> Wish:
    from offsite.experiments.frontier import Wish
    from offsite.experiments.frontier.choose import Amount

    return Wish(*(None if word is None else Amount.of(word) for word in (min_gap, max_loss)))


def _results(about: dict[str, Any], found: Frontier, text: str, seed: int) -> dict[str, Any]:
    """What frontier.json says, but for the command that makes the chosen emulator."""
    from offsite.data import tasks
    from offsite.provenance import record

    results = {"kind": "frontier", **about, **found.as_json(), **record(seed), "command": None}
    return results | {"notes": [*found.notes, *tasks.left_out([text]), *found.failed]}


def _write(results: dict[str, Any], found: Frontier, serve: GridProfiles, grid: Grid, out: Path) -> None:
    """All of the output; `results` come to hold the call that makes the emulator."""
    from offsite import report

    with staged(out) as folder:
        if found.chosen is not None:
            point = found.points[found.chosen].settings
            results["command"] = serve.send(grid, point, results["model"], out, folder, results["seed"])
        write_json(folder / "frontier.json", results)
        report.write(results, folder / "report.html")


def _varied(vary: list[str], **listed: str | None) -> dict[str, list[str]]:
    """Values by knob, of `--vary` and of the options for some of the knobs."""
    from offsite.errors import UserError

    found = {knob: words(values) for knob, values in listed.items() if values}
    for word in vary:
        knob, equals, values = word.partition("=")
        if not equals or knob in ("keep", "split"):
            raise UserError(f"A knob is varied as name=value,value, not {word!r}; keep and split have options.")
        found[knob] = words(values)
    return found


def _grid(
    method: str | None,
    profiles: list[Profile],
    fixed: list[str],
    varied: dict[str, list[str]],
    keeps: str | None,
    splits: str | None,
    seed: int,
) -> Grid:
    from offsite.experiments.frontier import grid
    from offsite.owner.methods import DEFAULT, before

    names = method.split("+") if method else list(dict.fromkeys(each.method for each in profiles)) or [DEFAULT]
    cuts = [grid.parse_split(word) for word in words(splits)] if splits else []
    shares = grid.parse_keeps(words(keeps) if keeps else [])
    found = grid.Grid(names, fixed, varied, shares, cuts, before(names, seed, profiles))
    _check(found, profiles)
    return found


def _check(grid: Grid, profiles: list[Profile]) -> None:
    """Refuse points of the grid that neither the profiles serve, nor one that is made on the way."""
    from offsite.model.split import Split
    from offsite.owner.profile import Profile

    settings = grid.settings()
    made = [Profile(Split(), (), method=each.name, knobs=each.knobs) for each in grid.of(settings[0])]
    known = {profile.method for profile in profiles}
    for point in settings:
        methods = {each.name: each for each in grid.of(point)}
        for profile in [*profiles, *(each for each in made if each.method not in known)]:
            methods.get(profile.method, methods[grid.words[0]]).check(profile)


def _resumable(work: Path) -> bool:
    """Whether there is something that the same command goes on from."""
    from offsite.training.checkpoint import has_checkpoint

    if any(work.glob("*.json")) or any(map(has_checkpoint, work.glob("*-checkpoints"))):
        return True
    return any(has_parts(folder) for folder in work.glob("profile-*"))


def _show(results: Mapping[str, Any], found: Frontier, out: Path) -> None:
    say = console().print
    say(frontier_table(found))
    if found.same:
        say(f"{found.same} more settings make one of these emulators once more, and are left out.")
    say(*results["notes"], sep="\n")
    say(found.answer)
    if found.chosen is not None:
        say(f"Emulator in {out / 'emulator'}: send this folder, and keep emulator-receipt to yourself.")
        say(f"Made by: {results['command']}")
    say(f"Report: {out / 'report.html'}")
