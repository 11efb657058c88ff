"""The experiment of the field: five rows for one emulator, resumable row by row."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from offsite.adapter import Adapter, swap
from offsite.data_owner.tune import TuneConfig, tune
from offsite.emulator import Emulator
from offsite.errors import UserError
from offsite.folders import write_text
from offsite.owner.build import check_parent, keep_of, lossless
from offsite.owner.plug import plug
from offsite.report.results import ROWS
from offsite.scoring import evaluate
from offsite.tasks import Task
from offsite.text import Example
from offsite.training import autocast

Row = dict[str, dict[str, float]]
"""Scores of one row by task, as `evaluate.Score` has them."""


@dataclass(frozen=True)
class Experiment:
    """What is asked of every row alike."""

    tasks: Sequence[Task]
    train: Sequence[Example]
    config: TuneConfig = field(default_factory=TuneConfig)
    limit: int | None = None
    """Only the first so many questions of each task."""


def compare(model: PreTrainedModel, emulator: Emulator, experiment: Experiment, work: Path) -> dict[str, Any]:
    """Zero-shot, fine-tuned, emulator zero-shot, emulator tuned, plugged in: the same data, steps and seed.

    `model` comes back as it was; `emulator` ends up tuned. Each finished stage is kept in `work`, so that an
    interrupted comparison, run again, goes on where it stopped.
    """
    if emulator.tokenizer is None:
        raise UserError("The emulator came without a tokenizer, so nothing can be tuned or scored with it.")
    check_parent(emulator, model)
    stages = _Stages(work, _fingerprint(emulator, experiment))
    rows: dict[str, Row] = {}

    def score(name: str, of: PreTrainedModel) -> None:
        rows[name] = stages.once(name, lambda: _scores(of, emulator, experiment))

    keep = keep_of(emulator, model)
    score("zero_shot", model)
    score("emulator_zero_shot", emulator.model)
    tuned = stages.tuned("emulator_tuned", emulator, experiment)
    score("emulator_tuned", emulator.model)
    displaced = plug(model, tuned)
    try:
        score("plugged_in", model)
    finally:
        plug(model, displaced)
    full = lossless(model, emulator.split, emulator.tokenizer)
    stages.tuned("fine_tuned", full, experiment)
    score("fine_tuned", full.model)
    return _results(emulator, experiment, {row.key: rows[row.key] for row in ROWS}, keep, stages)


def _results(
    emulator: Emulator, experiment: Experiment, rows: dict[str, Row], keep: float, stages: _Stages
) -> dict[str, Any]:
    return {
        "rows": rows,
        "keep": keep,
        "method": emulator.method,
        "split": asdict(emulator.split),
        "tuning": asdict(experiment.config),
        "limit": experiment.limit,
        "sources": {task.name: task.source for task in experiment.tasks},
        "notes": [task.note for task in experiment.tasks if task.note],
        "curves": stages.curves(),
        "seconds": stages.seconds(),
    }


def _scores(of: PreTrainedModel, emulator: Emulator, experiment: Experiment) -> Row:
    assert emulator.tokenizer is not None
    with autocast(of):
        scores = evaluate(of, emulator.tokenizer, experiment.tasks, limit=experiment.limit)
    return {task: asdict(score) for task, score in scores.items()}


def _fingerprint(emulator: Emulator, experiment: Experiment) -> str:
    """What a stage's result hangs on; stages of anything else are started over."""
    asked = (emulator.origin, emulator.digest, experiment)
    return hashlib.sha256(repr(asked).encode()).hexdigest()


class _Stages:
    """The finished stages of one comparison, in a folder."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        mark = folder / "fingerprint"
        if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(mark, fingerprint)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of the stage `name`, made now unless an earlier run did."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            start = time.monotonic()
            value = make()
            write_text(file, json.dumps({"value": value, "seconds": time.monotonic() - start}))
        return json.loads(file.read_text(encoding="utf-8"))["value"]

    def tuned(self, name: str, emulator: Emulator, experiment: Experiment) -> Adapter:
        """The adapter tuned in `emulator`, which holds it afterwards; from an earlier run if it got so far."""
        bundle = self.folder / f"{name}-adapter"

        fresh_ones: list[Adapter] = []

        def make() -> list[Any]:
            what = "Fine-tuning" if name == "fine_tuned" else "Tuning the emulator"
            work = self.folder / f"{name}-checkpoints"
            fresh = tune(emulator, experiment.train, experiment.config, work=work, resume=True, what=what)
            fresh.save(bundle)
            fresh_ones.append(fresh)
            return [point._asdict() for point in fresh.curve]

        self.once(f"{name}-curve", make)
        if fresh_ones:
            return fresh_ones[0]
        adapter = Adapter.load(bundle)
        swap(emulator.model, adapter)
        return adapter

    def curves(self) -> Mapping[str, Any]:
        """Loss by step of the two tunings."""
        return {name: self.once(f"{name}-curve", list) for name in ("fine_tuned", "emulator_tuned")}

    def seconds(self) -> dict[str, float]:
        """Wall-clock time of each stage."""
        files = sorted(self.folder.glob("*.json"))
        return {f.stem: round(json.loads(f.read_text(encoding="utf-8"))["seconds"], 1) for f in files}
