"""The experiment of the field: five rows for an emulator, each stage made once."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.bundles import bundle
from offsite.bundles.adapter import Adapter, adapter_tensors, swap
from offsite.bundles.emulator import Emulator
from offsite.data.examples import Example
from offsite.data.tasks import Task, examples, load
from offsite.data_owner.config import TuneConfig
from offsite.data_owner.tune import learning_rate, tune
from offsite.errors import UserError
from offsite.experiments.cache import Cache, Key
from offsite.files.atomic import alone_in_work, remove
from offsite.model.modes import move
from offsite.model.precision import autocast, bf16_pays
from offsite.model.split import Split
from offsite.owner.build import check_parent, keep_of, lossless, origin
from offsite.owner.plug import plug
from offsite.provenance import versions
from offsite.results.schema import ROWS
from offsite.scoring import evaluate
from offsite.training.rate import Rate

TaskScores = dict[str, dict[str, Any]]
"""Scores of one row by task: the fields of `Score`, as JSON."""
_NO_MATTER = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
}  # of a config, to what it computes


@dataclass(frozen=True)
class Experiment:
    """What is asked of every row alike."""

    tasks: Sequence[Task]
    train: Sequence[Example]
    config: TuneConfig = field(default_factory=TuneConfig)
    limit: int | None = None
    """Only the first so many questions of each task."""

    @classmethod
    def of(cls, words: Sequence[str], train: str, config: TuneConfig, limit: int | None) -> Experiment:
        """By the words for tasks, or files of questions, and for what to train on."""
        return cls([load(word, "test") for word in words], examples(train), config, limit)


@dataclass(frozen=True)
class Bench:
    """A model on which any number of emulators are tried; it always comes back as it was, bit for bit."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    split: Split
    cache: Cache

    def ends(self, experiment: Experiment) -> dict[str, Any]:
        """What no emulator has a part in: `rows` zero_shot and fine_tuned, `curve`, `seconds` by stage."""
        full = _Stages(self, {}, lambda: lossless(self.model, self.split, self.tokenizer), experiment)
        rows = {
            "zero_shot": full.row("zero_shot", lambda: full.score(self.model)),
            "fine_tuned": full.row("fine_tuned", lambda: full.score(full.tuned())),
        }
        return full.results(rows)

    def trial(self, name: Key, make: Callable[[], Emulator], experiment: Experiment) -> dict[str, Any]:
        """The other three `rows`, `curve`, `seconds` by stage, and the `stored` share of the middle.

        `name` holds what decides the emulator besides the model (method, knobs, keep, text ...); `make`
        only runs, and once, where a stage lacks. What it makes may end up tuned.
        """
        assert name, "an emulator has a name"
        here = _Stages(self, name, make, experiment)
        weigh = {"stage": "stored", **here.about}
        stored = here.once(weigh, lambda: keep_of(here.emulator(), self.model))
        rows = {
            "emulator_zero_shot": here.zero_shot(),
            "emulator_tuned": here.row("emulator_tuned", lambda: here.score(here.tuned())),
            "plugged_in": here.row("plugged_in", here.plugged_in),
        }
        return here.results(rows) | {"stored": stored}

    def zero_shot(self, name: Key, make: Callable[[], Emulator], experiment: Experiment) -> TaskScores:
        """The first of the rows of `trial` by itself, which needs no tuning."""
        return _Stages(self, name, make, experiment).zero_shot()

    def notes(self, experiment: Experiment) -> list[str]:
        """Sentences that belong beside any rows of the `experiment`."""
        with autocast(self.model) as precision:
            sentences = [task.note for task in experiment.tasks if task.note]
        return [*sentences, *_known(experiment), f"Scored in {precision}."]

    def lacks(self, name: Key | None, experiment: Experiment) -> list[str]:
        """The rows that `trial` of this `name` (`ends`, for None) would have to make."""
        here = _Stages(self, name or {}, _nothing, experiment)
        rows = [row.key for row in ROWS if (row.key in ("zero_shot", "fine_tuned")) == (name is None)]
        return [row for row in rows if not self.cache.has(here.key(row))]

    def rate(self, experiment: Experiment) -> Rate:
        """The learning rate of every tuning of the `experiment`, with any seed.

        As asked; or else chosen once, in the full model, and kept.
        """
        config = replace(experiment.config, seed=0)
        if config.lr is not None:
            return Rate(config.lr, "given")

        def make() -> dict[str, Any]:
            whole = lossless(self.model, self.split, self.tokenizer)
            return asdict(learning_rate(whole, experiment.train, config))

        about = _training(replace(experiment, config=config))
        found = self.cache.once({"stage": "learning_rate", "model": self.digest, **about}, make)
        return Rate.of(found)

    @functools.cached_property
    def digest(self) -> str:
        """Stands for the model, its split, its tokenizer, and what runs them: libraries, device, precision."""
        here = origin(self.model, self.split, self.tokenizer)
        about = self.model.config.to_dict()  # the same weights with another rope are another model
        config = sorted((name, repr(value)) for name, value in about.items() if name not in _NO_MATTER)
        words = (_how(self.tokenizer), self.tokenizer.special_tokens_map, self.tokenizer.chat_template)
        libraries = versions(("offsite", "torch", "transformers", "tokenizers", "accelerate", "peft"))
        runs = (libraries, self.model.device.type, bf16_pays())
        return _digest((here, config, words, runs))


@alone_in_work
def compare(model: PreTrainedModel, emulator: Emulator, experiment: Experiment, work: Path) -> dict[str, Any]:
    """Zero-shot, fine-tuned, emulator zero-shot, emulator tuned, plugged in: the same data, steps and seed.

    `model` comes back as it was; `emulator` may end up tuned. Each finished stage is kept in `work`, so that an
    interrupted comparison, run again, goes on where it stopped.
    """
    if emulator.tokenizer is None:
        raise UserError("The emulator came without a tokenizer, so nothing can be tuned or scored with it.")
    if check_parent(emulator, model).start != bundle.digest(adapter_tensors(emulator.model, emulator.split)):
        raise UserError(
            "The emulator's adapter layers are not the model's any more; give the emulator as it was before "
            "tuning, and the model as it was when the emulator was made."
        )
    move(emulator.model, model.device)
    name = {"bundle": emulator.digest or bundle.digest(emulator.model.state_dict())}
    bench = Bench(model, emulator.tokenizer, emulator.split, Cache(work))
    ends = bench.ends(experiment)
    trial = bench.trial(name, lambda: emulator, experiment)
    rows = ends["rows"] | trial["rows"]
    rate = bench.rate(experiment)
    return {
        "rows": {row.key: rows[row.key] for row in ROWS},
        "keep": trial["stored"],
        "method": emulator.method,
        "split": asdict(emulator.split),
        "tuning": asdict(replace(experiment.config, lr=rate.lr)),
        "learning_rate": asdict(rate),
        "limit": experiment.limit,
        "sources": {task.name: task.source for task in experiment.tasks},
        "notes": [*bench.notes(experiment), *([] if rate.how == "given" else [str(rate)])],
        "curves": {"fine_tuned": ends["curve"], "emulator_tuned": trial["curve"]},
        "seconds": ends["seconds"] | trial["seconds"],
    }


_TRAINED = ("fine_tuned", "emulator_tuned", "plugged_in")


class _Stages:
    """The stages of one emulator, or of the full model, on one experiment."""

    def __init__(self, bench: Bench, name: Key, make: Callable[[], Emulator], experiment: Experiment) -> None:
        self.bench, self.experiment = bench, experiment
        self.about = {"model": bench.digest, "emulator": dict(name)}
        self.emulator = functools.cache(make)
        self.seconds: dict[str, float] = {}

    def once(self, key: Key, make: Callable[[], Any]) -> Any:
        value, seconds = self.bench.cache.timed(key, make)
        self.seconds[key["stage"]] = round(seconds, 1)
        return value

    def row(self, stage: str, make: Callable[[], TaskScores]) -> TaskScores:
        if stage in _TRAINED and not self.bench.cache.has(self.key(stage)):
            _ = self._adapter  # a stage of its own, which is not to be in the time of this one
        row: TaskScores = self.once(self.key(stage), make)
        return row

    def key(self, stage: str) -> dict[str, Any]:
        """Of a row: the questions that it answers, and what was trained on before, if anything was."""
        asked = {"asked": _asked(self.experiment)} | (self._training if stage in _TRAINED else {})
        if any(task.scoring == "multiple_choice" for task in self.experiment.tasks):
            asked |= {"kept": "choices"}  # which rows of older versions lack: they are made anew
        return {"stage": stage, **self.about, **asked}

    def score(self, model: PreTrainedModel) -> TaskScores:
        asked = self.experiment
        with autocast(model):
            scores = evaluate(model, self.bench.tokenizer, asked.tasks, limit=asked.limit)
        return {task: asdict(score) for task, score in scores.items()}

    def zero_shot(self) -> TaskScores:
        return self.row("emulator_zero_shot", lambda: self.score(self.emulator().model))

    def tuned(self) -> PreTrainedModel:
        """The emulator's model, holding the tuned adapter."""
        adapter, in_place = self._adapter
        if not in_place:
            swap(self.emulator().model, adapter)
        return self.emulator().model

    def plugged_in(self) -> TaskScores:
        displaced = plug(self.bench.model, self._adapter[0])
        try:
            return self.score(self.bench.model)
        finally:
            plug(self.bench.model, displaced)

    def results(self, rows: Mapping[str, TaskScores]) -> dict[str, Any]:
        """The results, beyond which the adapter, of some size, is not kept."""
        if not self.bench.cache.has(self._curve):  # another experiment, interrupted, forgot it
            self._tune()
        curve = self.once(self._curve, list)
        for left in (self._bundle, self._work):  # of the latter, what a kill left
            remove(left)
        stages = [*rows, *sorted(self.seconds.keys() - rows)]  # kept from before or not, in the same order
        return {"rows": dict(rows), "curve": curve, "seconds": {one: self.seconds[one] for one in stages}}

    @functools.cached_property
    def _adapter(self) -> tuple[Adapter, bool]:
        """The tuned adapter, and whether the emulator holds it already."""
        if self._bundle.exists() and self.bench.cache.has(self._curve):
            return Adapter.load(self._bundle), False
        return self._tune(), True

    def _tune(self) -> Adapter:
        tuned: list[Adapter] = []

        def make() -> list[Any]:
            what = "Tuning the emulator" if self.about["emulator"] else "Fine-tuning"
            asked = self.experiment
            config = replace(asked.config, lr=self.bench.rate(asked).lr)
            fresh = tune(self.emulator(), asked.train, config, work=self._work, resume=True, what=what)
            fresh.save(self._bundle)
            tuned.append(fresh)
            return [point._asdict() for point in fresh.curve]

        self.bench.cache.forget(self._curve)
        try:
            self.once(self._curve, make)
        except UserError:  # a run that ran away, which would do so again
            remove(self._work)
            raise
        remove(self._work)
        return tuned[0]

    @property
    def _bundle(self) -> Path:
        return self.bench.cache.place(self._curve, "-adapter")

    @property
    def _work(self) -> Path:
        return self.bench.cache.place(self._curve, "-checkpoints")

    @functools.cached_property
    def _curve(self) -> dict[str, Any]:
        stage = "emulator_tuned-curve" if self.about["emulator"] else "fine_tuned-curve"
        return {"stage": stage, **self.about, **self._training}

    @functools.cached_property
    def _training(self) -> dict[str, Any]:
        return _training(self.experiment)


def _training(experiment: Experiment) -> dict[str, Any]:
    """What decides a tuned adapter besides the emulator."""
    config = {name: value for name, value in asdict(experiment.config).items() if name != "report_to"}
    read = [(example.pieces, example.closed) for example in experiment.train]
    return {"train": _digest(read), "config": config}


def _asked(experiment: Experiment) -> str:
    """Stands for the questions, as far as the limit lets them be asked."""
    asked = [task.first(experiment.limit) for task in experiment.tasks]
    return _digest([(task.name, task.scoring, task.questions, task.texts) for task in asked])


def _known(experiment: Experiment) -> list[str]:
    """A sentence for each task of which questions are tuned on too."""
    tuned = {example.text for example in experiment.train}
    sentences = []
    for task in (task.first(experiment.limit) for task in experiment.tasks):
        same = sum(question.example().text in tuned for question in task.questions)
        if same:
            sentences.append(
                f"Of the {len(task.questions)} questions of {task.name} {same} {'is' if same == 1 else 'are'} "
                "tuned on as well, so the scores include memorised answers; name other data to train on."
            )
    return sentences


def _how(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that turns text into tokens."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return str(fast.to_str()) if fast is not None else repr(sorted(tokenizer.init_kwargs.items(), key=str))


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _nothing() -> Emulator:
    raise AssertionError("nothing is made for a plan")
