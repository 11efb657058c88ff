"""offsite compare."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.options import (
    Epochs,
    Force,
    Json,
    Limit,
    Rank,
    Rate,
    Stages,
    Steps,
    Train,
    a_bundle,
    a_model_or_recipe,
    some_tasks,
    words,
)
from offsite.cli.shell import beside, console, emit, output, stages
from offsite.cli.tables import duration, plan_table, rows_tables, study_table
from offsite.errors import UserError
from offsite.files.atomic import staged, write_json

if TYPE_CHECKING:
    from offsite.experiments.compare import Experiment
    from offsite.experiments.study import Recipe

NAME = "compare"
HELP = """Compare five rows: zero-shot, fine-tuned, emulator zero-shot, emulator tuned and plugged in.

Give a model and an emulator, or a recipe file that names methods, keeps, tasks and seeds. It needs the full
model and the data in one place, so it is for experiments on public data. After an interruption the same command
resumes.

Example: `offsite compare smollm2-135m emulator/ --tasks arc_easy --limit 200 -o comparison/`

Another: `offsite compare recipes/smollm2.yaml -o study/ --dry-run`
"""

First = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|RECIPE",
        callback=a_model_or_recipe,
        help="A transformers folder, named model or hub id; or a recipe (.yaml).",
    ),
]
Made = Annotated[
    Path | None,
    typer.Argument(callback=a_bundle, help="An emulator bundle made from MODEL; leave it out with a recipe."),
]
Tasks = Annotated[
    str | None,
    typer.Option("--tasks", callback=some_tasks, help="Tasks or files of questions, separated by commas."),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Examples in an optimizer step [default: 8].")]
Chance = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Random seed [default: 0].")]
Over = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value of the recipe, as steps=20 or seeds=[0,1].")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print a recipe's plan with its expected time and memory; run nothing."),
]


def command(
    first: First,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for results, tables and report.")],
    emulator: Made = None,
    task_names: Tasks = None,
    train: Train = None,
    limit: Limit = None,
    epochs: Epochs = None,
    steps: Steps = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    lora_rank: Rank = None,
    seed: Chance = None,
    over: Over = None,
    cache: Stages = None,
    dry_run: DryRun = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the five rows, write results.json and report.html, and a recipe's tables."""
    tuning = {"epochs": epochs, "steps": steps, "lr": lr, "seed": seed, "lora-rank": lora_rank}
    tuning |= {"batch-size": batch_size}
    options = {"tasks": task_names, "train": train, "limit": limit} | tuning
    given = {name: value for name, value in options.items() if value is not None}
    if emulator is None:
        recipe = _recipe(first, over or [], given)
        if dry_run:
            _plan(recipe, cache or beside(out, ".stages"), json)
            return
        read = [first, recipe.model, *recipe.tasks, recipe.train or recipe.model]
        read += recipe.text.split(",")
        output(out, force, [*read, *([cache] if cache else [])])
        with stages(cache, beside(out, ".stages"), _resumable) as work:
            _study(recipe, out, work, json)
        return
    if Path(first).suffix.lower() in (".yaml", ".yml"):
        raise UserError(f"A recipe makes its emulators itself; leave {str(emulator)!r} out.")
    for option, value in (("--set", over), ("--dry-run", dry_run)):
        if value:
            raise UserError(f"{option} is for recipes, and {first!r} is no recipe; leave it out.")
    if task_names is None:
        raise UserError("Comparing a model and its emulator needs tasks; add, for example, --tasks arc_easy.")
    data = train or words(task_names)[0]
    output(out, force, [first, emulator, *words(task_names), data, *([cache] if cache else [])])
    from offsite.data_owner.config import TuneConfig
    from offsite.experiments.compare import Experiment

    chosen: dict[str, Any] = {name.replace("-", "_"): given[name] for name in tuning if name in given}
    config = TuneConfig(**chosen)
    with stages(cache, beside(out, ".stages"), _resumable) as work:
        _pair(first, emulator, Experiment.of(words(task_names), data, config, limit), data, out, work, json)


# --- one emulator -----------------------------------------------------------------------------------------


def _pair(
    model: str, emulator: Path, experiment: Experiment, train: str, out: Path, work: Path, json: bool
) -> None:
    from offsite import report
    from offsite.bundles.emulator import Emulator
    from offsite.experiments.compare import compare
    from offsite.model import loading
    from offsite.provenance import record
    from offsite.report.verdict import judge
    from offsite.results.schema import Results

    opened = Emulator.load(emulator, allow_large=True)  # the model that it was made from is at hand
    whole, _ = loading.load(model)
    results = compare(whole, opened, experiment, work)
    results |= {"model": model, "train": train} | record(experiment.config.seed)
    read = Results.read(results)
    verdicts = {task: judge(read, [task]) for task in read.tasks}
    results["judged"] = {task: verdict.as_json() for task, verdict in verdicts.items()}
    with staged(out) as folder:
        write_json(folder / "results.json", results)
        report.write(results, folder / "report.html")

    def show() -> None:
        for task, verdict in verdicts.items():
            console().print(task, *verdict.lines, sep="\n")
        console().print(*rows_tables(results["rows"], results["notes"]), sep="\n")
        console().print(f"Report: {out / 'report.html'}")

    emit(results, json, show)


# --- a recipe ---------------------------------------------------------------------------------------------


def _recipe(first: str, over: list[str], given: Mapping[str, object]) -> Recipe:
    from offsite.experiments.study import read

    if Path(first).suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{first!r} is no recipe (.yaml); name one, or a model and an emulator made from it.")
    for name, value in given.items():
        key = name.replace("-", "_")
        raise UserError(f"A recipe says its {key} itself; write --set {key}={value} in place of --{name}.")
    return read(Path(first), over)


def _plan(recipe: Recipe, work: Path, json: bool) -> None:
    from offsite.experiments.study.forecast import forecast

    found = forecast(recipe, work)

    def show() -> None:
        console().print(plan_table(found))
        if found.memory is not None:
            time = "" if found.seconds is None else f"{duration(found.seconds)} and "
            size = f"{found.memory / 1e9:.1f} GB"
            console().print(f"About {time}{size} of memory; nothing was written.")

    emit(found.as_json(), json, show)


def _study(recipe: Recipe, out: Path, work: Path, json: bool) -> None:
    from offsite import report
    from offsite.experiments import study
    from offsite.model import loading
    from offsite.provenance import record

    whole, tokenizer = loading.load(recipe.model)
    results = study.run(recipe, whole, tokenizer, work, _say) | record(recipe.seeds[0])
    table = study.tabulate(results)
    with staged(out) as folder:
        write_json(folder / "results.json", results)
        (folder / "table.md").write_text(table.markdown(), encoding="utf-8")
        (folder / "table.tex").write_text(table.latex(), encoding="utf-8")
        report.write(results, folder / "report.html")

    def show() -> None:
        shown, screen = study_table(table), console()
        screen.width = max(
            screen.width, screen.measure(shown, options=screen.options.update(width=999)).maximum
        )
        screen.print(shown)
        console().print(f"Report: {out / 'report.html'}; tables: {out / 'table.md'}, {out / 'table.tex'}")

    emit(results, json, show)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _resumable(work: Path) -> bool:
    """Whether there is something that the same command goes on from."""
    from offsite.training.checkpoint import has_checkpoint

    parts = (*work.glob("*.json"), *work.glob("profil*/*/*.safetensors"), *work.glob("profiles/*/*/*.json"))
    return bool(parts) or any(map(has_checkpoint, work.glob("*-checkpoints")))
