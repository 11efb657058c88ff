"""A study: every cell of a recipe, each stage kept, so that it goes on wherever it was stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.data import tasks
from offsite.data.examples import Example
from offsite.errors import UserError
from offsite.experiments.cache import Cache
from offsite.experiments.compare import Bench, Experiment
from offsite.experiments.study.emulators import EmulatorMaker
from offsite.experiments.study.recipe import Cell, Recipe
from offsite.files.atomic import alone_in_work

Run = dict[str, Any]
"""The scores of one method (none: of the model itself) on one task with one seed; seconds: of its cell."""


class Study:
    """A recipe on its model, before or amid its work."""

    def __init__(
        self, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path
    ) -> None:
        recipe.split.middle(model.config.get_text_config().num_hidden_layers)
        self.recipe = recipe
        self.bench = Bench(model, tokenizer, recipe.split, Cache(work))
        self.emulators = functools.cache(
            lambda text: EmulatorMaker(self.bench, text, recipe.blocks, recipe.length)
        )
        self.task = functools.cache(lambda word: tasks.load(word, "test"))
        self.train = functools.cache(tasks.examples)

    def run(self, say: Callable[[str], None]) -> tuple[list[Run], list[str]]:
        """Every cell, the cached ones in no time, and a sentence for each that failed; `say` gets both.

        One tuning that diverges costs its own cell only; a UserError where none of a method came out.
        """
        cells = list(self.recipe.cells())
        for cell in cells:  # a task out of reach, or a malformed row, is refused before any work
            self.experiment(cell)
        runs: list[Run] = []
        failed: list[str] = []
        for number, cell in enumerate(cells, 1):
            if self.lacks(cell):
                say(f"{number} of {len(cells)}: {cell}")
            try:
                runs += self._runs(cell)
            except UserError as error:
                failed.append(f"There are no figures of {cell}: {error}")
                say(failed[-1])
        if failed and not any(run["method"] for run in runs):
            raise UserError(failed[-1])
        return runs, failed

    def lacks(self, cell: Cell) -> list[str]:
        """The rows of a cell that have yet to be made."""
        return self.bench.lacks(self._name(cell), self.experiment(cell))

    def experiment(self, cell: Cell) -> Experiment:
        """What a cell asks."""
        train: list[Example] = self.train(self.recipe.train or cell.tasks[0])
        asked = tuple(map(self.task, cell.tasks))
        return Experiment(asked, train, self.recipe.config(cell.seed), self.recipe.limit)

    def _runs(self, cell: Cell) -> list[Run]:
        experiment = self.experiment(cell)
        about: Run = {"method": cell.chain.word if cell.chain else ""}
        if cell.chain is None:
            found = self.bench.ends(experiment)
        else:
            maker = self.emulators(self.recipe.text_of(cell))
            make = functools.partial(maker.emulator, cell.chain, cell.keep, cell.seed)
            found = self.bench.trial(self._name(cell) or {}, make, experiment)
            about |= {"keep": cell.keep, "stored": found["stored"]}
        seconds = round(sum(found["seconds"].values()))
        return [
            {
                **about,
                "task": task.name,
                "seed": cell.seed,
                **{row: scores[task.name] for row, scores in found["rows"].items()},
                "seconds": seconds,
            }
            for task in experiment.tasks
        ]

    def _name(self, cell: Cell) -> dict[str, Any] | None:
        if cell.chain is None:
            return None
        return self.emulators(self.recipe.text_of(cell)).name(cell.chain, cell.keep, cell.seed)


@alone_in_work
def run(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The `results.json` of the recipe, without the record: `kind`, `recipe`, `runs`, `sources`, `notes`.

    What is done is kept in `work`; stopped anywhere and called again, it ends in the same runs. `model` comes
    back as it was.
    """
    study = Study(recipe, model, tokenizer, work)
    runs, failed = study.run(say)
    asked = [study.task(word) for word in recipe.tasks]
    first = [cell for cell in recipe.cells() if not cell.chain and cell.seed == recipe.seeds[0]]
    asked_first = list(map(study.experiment, first))
    notes = [note for experiment in asked_first for note in study.bench.notes(experiment)]
    rates = {
        task.name: asdict(study.bench.rate(experiment))
        for experiment in asked_first
        for task in experiment.tasks
    }
    return {
        "kind": "study",
        "recipe": recipe.model_dump(mode="json"),
        "runs": runs,
        "learning_rates": rates,
        "sources": {task.name: task.source for task in asked},
        "notes": [*dict.fromkeys(notes), *tasks.left_out(recipe.texts), *failed],
    }
