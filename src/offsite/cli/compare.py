"""offsite compare."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.shell import Force, Json, Limit, Rank, Seed, beside, console, emit, leftovers, output, words
from offsite.cli.tables import rows_tables

if TYPE_CHECKING:
    from offsite.data_owner.tune import TuneConfig
    from offsite.experiment import Experiment

NAME = "compare"
HELP = """The experiment: zero-shot, fine-tuned, emulator zero-shot, emulator tuned and plugged in.

Needs the full model and the data on one side, so it is for experiments and public data. Interrupted, the same
command goes on where it stopped.

Example: `offsite compare smollm2-135m emulator/ --tasks arc_easy --limit 200 -o comparison/`
"""


def command(
    model: Annotated[str, typer.Argument(help="A folder, a named model or a hub id.")],
    emulator: Annotated[Path, typer.Argument(help="An emulator bundle made from it.")],
    task_names: Annotated[str, typer.Option("--tasks", help="Names or files of questions, by commas.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Where results and report go.")],
    train: Annotated[str | None, typer.Option(help="A data file or task [default: the first task].")] = None,
    limit: Limit = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each tuning, at the most.")] = 150,
    lr: Annotated[float, typer.Option(help="Peak learning rate of both tunings.")] = 2e-4,
    lora_rank: Rank = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the five rows, write results.json and report.html."""
    from offsite import models, report
    from offsite.data_owner.tune import TuneConfig
    from offsite.emulator import Emulator
    from offsite.experiment import compare
    from offsite.folders import staged
    from offsite.record import record

    output(out, force, [model, emulator, *words(task_names), *([train] if train else [])])
    config = TuneConfig(steps=steps, lr=lr, lora_rank=lora_rank, seed=seed)
    experiment = _experiment(task_names, train, config, limit)
    opened = Emulator.load(emulator)
    whole, _ = models.load(model)
    with leftovers(beside(out, ".stages"), _worth) as work:
        results = compare(whole, opened, experiment, work)
        results |= {"model": model, "train": train or words(task_names)[0]} | record(seed)
        with staged(out) as folder:
            (folder / "results.json").write_text(jsonlib.dumps(results, indent=2) + "\n", encoding="utf-8")
            report.write(results, folder / "report.html")

    def show() -> None:
        console().print(*rows_tables(results["rows"], results["notes"]), sep="\n")
        console().print(f"Report: {out / 'report.html'}")

    emit(results, json, show)


def _experiment(task_names: str, train: str | None, config: TuneConfig, limit: int | None) -> Experiment:
    from offsite import tasks
    from offsite.experiment import Experiment

    asked = [tasks.load(word, "test") for word in words(task_names)]
    return Experiment(asked, tasks.examples(train or words(task_names)[0]), config, limit)


def _worth(work: Path) -> bool:
    """Whether there is something that the same command goes on from."""
    from offsite.training import has_checkpoint

    return any(work.glob("*.json")) or any(map(has_checkpoint, work.glob("*-checkpoints")))
