"""Tune a language model you may not see, on data you may not share.

    whole, tokenizer = offsite.load("smollm2-135m")                    # model owner
    split = offsite.Split()
    method = offsite.METHODS["uniform"]()
    blueprint = method.plan(method.profile(whole, split), keep=0.7)
    offsite.build(whole, split, blueprint, tokenizer=tokenizer).save("emulator")

    emulator = offsite.Emulator.load("emulator")                       # data owner
    offsite.tune(emulator, offsite.examples("private.jsonl")).save("adapter")

    offsite.plug(whole, offsite.Adapter.load("adapter"))               # model owner

The names are imported when first used, so that `import offsite` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offsite.bundles.adapter import Adapter
    from offsite.bundles.emulator import Emulator
    from offsite.data.examples import Example, Question
    from offsite.data.tasks import Task, examples, texts
    from offsite.data.tasks import load as load_task
    from offsite.data_owner.tune import TuneConfig, Tuned, tune
    from offsite.errors import UserError
    from offsite.experiments.compare import Experiment, compare
    from offsite.model.loading import load
    from offsite.model.split import Split
    from offsite.owner.blueprint import Blueprint, Place
    from offsite.owner.build import build
    from offsite.owner.distill import DistillConfig, distill
    from offsite.owner.methods import METHODS
    from offsite.owner.methods.base import Method
    from offsite.owner.plug import plug
    from offsite.owner.profile import Profile
    from offsite.scoring import Score, evaluate

_HOME = {
    "Adapter": "bundles.adapter",
    "Blueprint": "owner.blueprint",
    "DistillConfig": "owner.distill",
    "Emulator": "bundles.emulator",
    "Example": "data.examples",
    "Experiment": "experiments.compare",
    "METHODS": "owner.methods",
    "Method": "owner.methods.base",
    "Place": "owner.blueprint",
    "Profile": "owner.profile",
    "Question": "data.examples",
    "Score": "scoring",
    "Split": "model.split",
    "Task": "data.tasks",
    "TuneConfig": "data_owner.tune",
    "Tuned": "data_owner.tune",
    "UserError": "errors",
    "build": "owner.build",
    "compare": "experiments.compare",
    "distill": "owner.distill",
    "evaluate": "scoring",
    "examples": "data.tasks",
    "load": "model.loading",
    "load_task": "data.tasks",
    "plug": "owner.plug",
    "texts": "data.tasks",
    "tune": "data_owner.tune",
}
__all__ = [
    "METHODS", "Adapter", "Blueprint", "DistillConfig", "Emulator", "Example", "Experiment", "Method",
    "Place", "Profile", "Question", "Score", "Split", "Task", "TuneConfig", "Tuned", "UserError", "build",
    "compare", "distill", "evaluate", "examples", "load", "load_task", "plug", "texts", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'offsite' has no attribute {name!r}")
    value = getattr(import_module(f"offsite.{_HOME[name]}"), "load" if name == "load_task" else name)
    globals()[name] = value
    return value
