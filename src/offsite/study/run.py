"""A study: every cell of a recipe, each stage kept, so that it goes on wherever it was stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite import tasks
from offsite.decoder import longest
from offsite.experiment import Bench, Cache, Experiment
from offsite.study.chain import Chain
from offsite.study.recipe import Recipe
from offsite.study.workshop import Workshop
from offsite.tasks import Task
from offsite.text import Example

Run = dict[str, Any]
"""The scores of one method (none: of the model itself) on one task with one seed."""


class Study:
    """A recipe on its model, before or amid its work."""

    def __init__(
        self, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path
    ) -> None:
        recipe.split.middle(model.config.get_text_config().num_hidden_layers)
        self.recipe = recipe
        self.bench = Bench(model, tokenizer, recipe.split, Cache(work))
        self.workshop = Workshop(self.bench, recipe.text)
        self.task = functools.cache(lambda word: tasks.load(word, "test"))
        self.train = functools.cache(tasks.examples)

    def run(self, say: Callable[[str], None]) -> list[Run]:
        """Every cell, the cached ones in no time; `say` is told of each that is not."""
        cells = list(self.recipe.cells())
        runs = []
        for number, (seed, task, chain, keep) in enumerate(cells, 1):
            if self.lacks(seed, task, chain, keep):
                say(f"{number} of {len(cells)}: {told(seed, task, chain, keep)}")
            runs.append(self._run(seed, task, chain, keep))
        return runs

    def lacks(self, seed: int, task: str, chain: Chain | None, keep: float | None) -> list[str]:
        """The rows of a cell that have yet to be made."""
        name = self.workshop.name(chain, keep, seed) if chain else None
        return self.bench.lacks(name, self.experiment(seed, task))

    def experiment(self, seed: int, task: str) -> Experiment:
        """What a cell asks: training is for each task by itself."""
        train: list[Example] = self.train(self.recipe.train or task)
        asked: Task = self.task(task)
        config = self.recipe.config(seed)
        config = replace(config, max_length=min(config.max_length, longest(self.bench.model)))
        return Experiment((asked,), train, config, self.recipe.limit)

    def _run(self, seed: int, task: str, chain: Chain | None, keep: float | None) -> Run:
        experiment = self.experiment(seed, task)
        about: Run = {"method": chain.word if chain else ""}
        if chain is None:
            found = self.bench.ends(experiment)
        else:
            name = self.workshop.name(chain, keep, seed)
            make = functools.partial(self.workshop.emulator, chain, keep, seed)
            found = self.bench.trial(name, make, experiment)
            about |= {"keep": keep, "stored": found["stored"]}
        [of] = experiment.tasks
        rows = {row: scores[of.name] for row, scores in found["rows"].items()}
        return {
            **about,
            "task": of.name,
            "seed": seed,
            **rows,
            "seconds": round(sum(found["seconds"].values())),
        }


def told(seed: int, task: str, chain: Chain | None, keep: float | None) -> str:
    """A cell in words."""
    what = chain.word if chain else "the model itself"
    return f"{what}{'' if keep is None else f' at keep {keep:g}'} on {task}, seed {seed}"


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
    runs = study.run(say)
    asked = [study.task(word) for word in recipe.tasks]
    return {
        "kind": "study",
        "recipe": recipe.model_dump(mode="json"),
        "runs": runs,
        "sources": {task.name: task.source for task in asked},
        "notes": [task.note for task in asked if task.note],
    }
