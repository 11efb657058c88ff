"""Tune a language model you may not see, on data you may not share.

    whole, tokenizer = offsite.load("smollm2-135m")                    # model owner
    offsite.compress(whole, tokenizer, "gradot", keep=0.7).save("emulator")

    emulator = offsite.Emulator.load("emulator")                       # data owner
    offsite.tune(emulator, offsite.examples("private.jsonl")).save("adapter")

    offsite.plug(whole, offsite.Adapter.load("adapter"))               # model owner

`dir(offsite)` lists the public names; `help()` of each says what its fields and knobs mean. They are imported
when first used, so that `import offsite` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from offsite.docstrings import document

if TYPE_CHECKING:
    from offsite.bundles.adapter import Adapter
    from offsite.bundles.emulator import Emulator
    from offsite.data.blocks import blocks
    from offsite.data.encoding import IGNORED, Encoded, Prepared, encode, prepare
    from offsite.data.examples import Example, Question
    from offsite.data.tasks import Task, examples, texts
    from offsite.data.tasks import load as load_task
    from offsite.data_owner.config import TuneConfig
    from offsite.data_owner.tune import Tuned, tune
    from offsite.errors import UserError
    from offsite.experiments.compare import Experiment, compare
    from offsite.model.loading import load
    from offsite.model.split import Split
    from offsite.owner.blueprint import Blueprint, Place
    from offsite.owner.build import build, keep_of
    from offsite.owner.compress import Compressed, compress, profile_of
    from offsite.owner.distill import DistillConfig, distill
    from offsite.owner.fidelity import Fidelity, fidelity, held_out
    from offsite.owner.methods import METHODS
    from offsite.owner.methods.base import Method
    from offsite.owner.plug import plug
    from offsite.owner.profile import Profile
    from offsite.owner.receipt import write_receipt
    from offsite.scoring import Score, evaluate
    from offsite.training.batches import answer_loss, pad

_HOME = {
    "Adapter": "bundles.adapter",
    "Blueprint": "owner.blueprint",
    "Compressed": "owner.compress",
    "DistillConfig": "owner.distill",
    "Emulator": "bundles.emulator",
    "Encoded": "data.encoding",
    "Example": "data.examples",
    "Experiment": "experiments.compare",
    "Fidelity": "owner.fidelity",
    "IGNORED": "data.encoding",
    "METHODS": "owner.methods",
    "Method": "owner.methods.base",
    "Place": "owner.blueprint",
    "Prepared": "data.encoding",
    "Profile": "owner.profile",
    "Question": "data.examples",
    "Score": "scoring",
    "Split": "model.split",
    "Task": "data.tasks",
    "TuneConfig": "data_owner.config",
    "Tuned": "data_owner.tune",
    "UserError": "errors",
    "answer_loss": "training.batches",
    "blocks": "data.blocks",
    "build": "owner.build",
    "compare": "experiments.compare",
    "compress": "owner.compress",
    "distill": "owner.distill",
    "encode": "data.encoding",
    "evaluate": "scoring",
    "examples": "data.tasks",
    "fidelity": "owner.fidelity",
    "held_out": "owner.fidelity",
    "keep_of": "owner.build",
    "load": "model.loading",
    "load_task": "data.tasks",
    "pad": "training.batches",
    "plug": "owner.plug",
    "prepare": "data.encoding",
    "profile_of": "owner.compress",
    "texts": "data.tasks",
    "tune": "data_owner.tune",
    "write_receipt": "owner.receipt",
}
__all__ = [
    "IGNORED",
    "METHODS",
    "Adapter",
    "Blueprint",
    "Compressed",
    "DistillConfig",
    "Emulator",
    "Encoded",
    "Example",
    "Experiment",
    "Fidelity",
    "Method",
    "Place",
    "Prepared",
    "Profile",
    "Question",
    "Score",
    "Split",
    "Task",
    "TuneConfig",
    "Tuned",
    "UserError",
    "answer_loss",
    "blocks",
    "build",
    "compare",
    "compress",
    "distill",
    "encode",
    "evaluate",
    "examples",
    "fidelity",
    "held_out",
    "keep_of",
    "load",
    "load_task",
    "pad",
    "plug",
    "prepare",
    "profile_of",
    "texts",
    "tune",
    "write_receipt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'offsite' has no attribute {name!r}")
    value = getattr(import_module(f"offsite.{_HOME[name]}"), "load" if name == "load_task" else name)
    document(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
