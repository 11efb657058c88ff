"""What a study has yet to do, and about how long that takes: before any work, and without writing anything."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, PreTrainedModel

from offsite.data import tasks
from offsite.data.tasks import at_hand
from offsite.download.wheels import cache_dir
from offsite.experiments.study.recipe import Cell, Recipe
from offsite.experiments.study.run import Study
from offsite.model import loading
from offsite.model.decoder import Decoder, skeleton
from offsite.model.precision import autocast, bf16_pays
from offsite.owner.distill import DistillConfig

_SMALL = 4 << 30  # bytes of weights that a plan may open
_TOKENS = 256  # of the one forward pass that is timed
_QUESTIONS, _LENGTH = 1000, 100  # of a task that is not at hand: how many, and tokens of each
_LETTERS = 4.0  # of English, in a token
_SAMPLE = 50  # questions, from which the length of all is estimated
_GATHERED = 9 << 29  # bytes while a method learns: measured of gradot on 135M parameters, 4.3 GiB (docs/LOG.md)
_STATE = 12  # bytes for each parameter that is trained: gradient, and AdamW's two moments
_ENDS, _THREE = ("zero_shot", "fine_tuned"), ("emulator_zero_shot", "emulator_tuned", "plugged_in")


@dataclass(frozen=True)
class Step:
    """One cell of a study that is yet to be done, or done in part."""

    what: str
    seed: int
    rows: Sequence[str]
    """Those that lack."""
    seconds: float | None
    """About so long; None where nothing was timed."""


@dataclass(frozen=True)
class Forecast:
    """The plan of a study; what is None is not known."""

    cells: int
    todo: list[Step]
    seconds: float | None
    memory: int | None
    """Bytes, at the most."""
    how: str
    """What it is computed from, in a sentence or two."""

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def forecast(recipe: Recipe, work: Path) -> Forecast:
    """Look at what is at hand: a model that is here and small is opened, and one forward pass of it timed."""
    cells, folder = list(recipe.cells()), _folder(recipe.model)
    if folder is None:
        todo = [Step(cell.what, cell.seed, _rows(cell), None) for cell in cells]
        how = f"There is no estimate, for the model {recipe.model!r} is not on this machine yet."
        return Forecast(len(cells), todo, None, None, how)
    timed = _timed(work)
    if _opens(recipe, folder):
        study = Study(recipe, *loading.load(recipe.model), work)
        cost = _Cost(recipe, study.bench.model, _speed(study.bench.model), study, timed)
        how = f"An estimate, from a forward pass of {_TOKENS} tokens timed on this machine."
    else:
        model = skeleton(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
        cost = _Cost(recipe, model, None, None, timed)
        away = _lacking(recipe)
        why = f"{away[0]} is not on this machine yet" if away else "The model is too large to open for a plan"
        how = f"{why}, so the plan is as if nothing was done yet."
        how += "" if timed else " It has no time, for nothing of this study was timed yet."
    todo = [step for cell in cells if (step := cost.step(cell)).rows]
    if timed:
        how += " Times are of steps like these that are done."
    known = [step.seconds for step in todo if step.seconds is not None]
    learning = cost.learning() if todo else 0.0
    if learning is None or len(known) < len(todo):
        return Forecast(len(cells), todo, None, cost.memory, how)
    return Forecast(len(cells), todo, round(sum(known) + learning, 1), cost.memory, how)


def _timed(work: Path) -> dict[str, float]:
    """Seconds of each kind of stage, on average over those that are in the cache."""
    found: dict[str, list[float]] = {}
    for file in work.glob("*.json"):
        stage = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(stage["key"]["stage"], []).append(stage["seconds"])
    return {stage: fmean(seconds) for stage, seconds in found.items()}


def _folder(word: str) -> Path | None:
    """Where a model lies on this machine, its config at the least."""
    here = cache_dir() / "models" / word if word in loading.NAMED else Path(word).expanduser()
    if (here / "config.json").is_file():
        return here
    try:
        found = try_to_load_from_cache(word, "config.json")
    except HFValidationError:  # a path, and nothing is there
        return None
    return Path(found).parent if isinstance(found, str) else None


def _opens(recipe: Recipe, folder: Path) -> bool:
    """Whether all that a study reads is here, and the model is small."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return 0 < size <= _SMALL and not _lacking(recipe)


def _lacking(recipe: Recipe) -> list[str]:
    """What a study reads that is not on this machine yet."""
    asked = (*recipe.tasks, *([recipe.train] if recipe.train else []), *recipe.texts)
    return [word for word in asked if not at_hand(word)]


def _rows(cell: Cell) -> Sequence[str]:
    return _THREE if cell.chain else _ENDS


def _speed(model: PreTrainedModel) -> float:
    """Seconds for a token and a parameter, forward; the fastest of three passes, for others may run here."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (_TOKENS // 64, 64), device=model.device)
    times = []
    with torch.no_grad(), autocast(model):
        for _ in range(3):
            start = time.monotonic()
            model(input_ids=ids).logits.sum().item()
            times.append(time.monotonic() - start)
    return min(times) / _TOKENS / _parameters(model)


class _Cost:
    """Time and memory of a study's stages, from counts of parameters and tokens."""

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        speed: float | None,
        study: Study | None,
        timed: Mapping[str, float],
    ) -> None:
        self.recipe, self.model, self.speed, self.study, self.timed = recipe, model, speed, study, timed
        decoder = Decoder.of(model)
        self.whole = _parameters(model)
        self.middle = decoder.stored(recipe.split.middle(len(decoder)))
        self.adapter = decoder.stored(list(recipe.split.adapter(len(decoder)).values()))

    def step(self, cell: Cell) -> Step:
        """What one cell lacks, and how long that takes."""
        rows = self.study.lacks(cell) if self.study else _rows(cell)
        tuned = [f"{row}-curve" for row in ("fine_tuned", "emulator_tuned") if row in rows]
        seconds = [self.timed.get(stage) for stage in (*rows, *tuned)]
        known = [each for each in seconds if each is not None]
        if len(known) == len(seconds):
            return Step(cell.what, cell.seed, rows, round(sum(known), 1))
        return Step(cell.what, cell.seed, rows, self._counted(cell, rows))

    def _counted(self, cell: Cell, rows: Sequence[str]) -> float | None:
        """Seconds from counts of parameters and tokens; None without a speed."""
        if self.speed is None:
            return None
        emulator = self.whole - ((1 - (cell.keep or 0.8)) * self.middle if cell.chain else 0)
        sizes = (self.whole if row in ("zero_shot", "plugged_in") else emulator for row in rows)
        work = sum(map(self._asked, cell.tasks)) * sum(sizes)
        if set(rows) - {"zero_shot", "emulator_zero_shot"}:
            # forward, gradients of states, gradients of what is trained
            work += self._seen(self.recipe.train or cell.tasks[0]) * (2 * emulator + self.adapter)
        return round(self.speed * work, 1)

    def _asked(self, word: str) -> float:
        """Tokens that are read to score a task, about; a prompt counts once."""
        limit = self.recipe.limit
        if not at_hand(word):
            return _LENGTH * min(limit or _QUESTIONS, _QUESTIONS)
        task = tasks.load(word, "test").first(limit)
        if task.texts:
            return sum(map(len, task.texts)) / _LETTERS
        sample = task.questions[:_SAMPLE]
        letters = sum(len(one.prompt) + sum(map(len, one.choices)) for one in sample)
        return letters / len(sample) * len(task.questions) / _LETTERS

    def _seen(self, word: str) -> float:
        """Tokens of one tuning, about."""
        config, lengths = self.recipe.config(0), self._lengths(word)
        rows = len(tasks.examples(word)) if at_hand(word) else _QUESTIONS
        return config.steps_for(rows) * config.examples_a_step * sum(lengths) / len(lengths)

    def _lengths(self, word: str) -> list[float]:
        """Tokens of some examples, about."""
        found = [len(one.text) / _LETTERS for one in tasks.examples(word)[:_SAMPLE]] if at_hand(word) else []
        return [min(length, self.recipe.config(0).max_length) for length in found] or [_LENGTH]

    @property
    def _length(self) -> float:
        """Tokens of the longest examples: rows of like length are together in a batch."""
        words = [self.recipe.train] if self.recipe.train else self.recipe.tasks
        return max(length for word in words for length in self._lengths(word))

    def learning(self) -> float | None:
        """Seconds of profiling and distilling for each text; nothing is taken off for what is kept of it."""
        if self.speed is None:
            return 0.0 if self.timed else None
        chains, seeds = self.recipe.chains, self.recipe.seeds
        every = [method for seed in seeds for chain in chains for method in chain.seeded(seed)]
        methods = {(method.name, *method.knobs.items()): method for method in every}
        texts = [method.calibration for method in methods.values() if method.calibration]
        read = sum(3 * blocks * length for blocks, length in texts)
        seen = DistillConfig.batch_size * DistillConfig.length * 4  # a pass of the model, three of the emulator
        keeps = len(self.recipe.keeps)
        distilled = (
            sum(chain.distill * (keeps if chain.budgeted else 1) for chain in chains) * len(seeds) * seen
        )
        return self.speed * self.whole * (read + distilled) * len(self.recipe.texts)

    @property
    def memory(self) -> int:
        """The model, an emulator beside it and its copy in the precision of the tuning, the adapter's training,
        and the states and logits of one batch; or the model and what a method gathers of a text.
        """
        text = self.model.config.get_text_config()
        size = next(self.model.parameters()).element_size()
        batch = self.recipe.batch_size * self._length
        states = batch * (text.hidden_size * text.num_hidden_layers * 16 + text.vocab_size * 3) * 4
        weights = (self.whole + self.middle + 2 * self.adapter) * size
        cast = self.whole * size / 2 if size == 4 and bf16_pays() else 0
        learning = self.whole * size + (_GATHERED if any(chain.reads for chain in self.recipe.chains) else 0)
        return int(max(weights + cast + self.adapter * _STATE + states, learning))


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
