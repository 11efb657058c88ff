"""Tuning the adapter through the emulator, on data that stays where it is."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from offsite.bundles import bundle
from offsite.bundles.adapter import Adapter, Lora, swap
from offsite.bundles.emulator import Emulator
from offsite.data.encoding import Encoded, Prepared, prepare
from offsite.data.examples import Example
from offsite.data_owner.config import TuneConfig
from offsite.data_owner.plan import Parted
from offsite.data_owner.trainable import adapter_trainable, lora_sites, lora_tensors
from offsite.errors import UserError
from offsite.files.atomic import alone_in_work
from offsite.model.decoder import longest
from offsite.training import checkpoint, rate
from offsite.training.batches import answer_loss, pad
from offsite.training.loop import Point, TrainingData, fit
from offsite.training.rate import Rate

__all__ = ["TuneConfig", "Tuned", "learning_rate", "training_rows", "tune"]

Rows = Sequence[Example] | Prepared
"""Examples, or the `training_rows` made of them with the same config."""


@dataclass
class Tuned(Adapter):
    """An adapter fresh from tuning, with what only the data owner may see: it is in memory, in no bundle."""

    curve: Sequence[Point] = field(default=(), compare=False)
    """Loss by step."""
    config: TuneConfig = field(default_factory=TuneConfig, compare=False)
    """As it was tuned: with its steps and learning rate."""
    rate: Rate | None = field(default=None, compare=False)
    """The learning rate, and why it was taken."""


def training_rows(
    emulator: Emulator, examples: Sequence[Example], config: TuneConfig | None = None
) -> Prepared:
    """Tokenise `examples` as `tune` would train on them; says what is cut and what is left out.

    Raises:
        UserError: an emulator without a tokenizer, no examples, or as `prepare`.
    """
    config = config or TuneConfig()
    if emulator.tokenizer is None:
        raise UserError("This emulator came without a tokenizer, so text cannot be tuned on.")
    if not examples:
        raise UserError("There are no examples to tune on.")
    limit = min(config.max_length, longest(emulator.model))
    return prepare(examples, emulator.tokenizer, limit, config.date, emulator.vocabulary)


@alone_in_work
def tune(
    emulator: Emulator,
    examples: Rows,
    config: TuneConfig | None = None,
    *,
    heldout: Rows | None = None,
    work: Path | None = None,
    resume: bool = False,
    what: str = "Tuning",
) -> Tuned:
    """Tune the adapter layers of `emulator` on `examples`, answer tokens only, and return them.

    In place: afterwards the emulator holds the tuned adapter; nothing else in it has changed. On rows held out
    it is never worse than before, where those are four or more: `heldout`, or a tenth of the `examples`.
    Checkpoints go to `work` (a temporary folder if none), from which `resume` continues to the same result.
    Raises UserError where there is nothing to learn from, where `resume` finds a run of other data or settings,
    and where the numbers run away to NaN or infinity.
    """
    config = config or TuneConfig()
    parts = _parted(emulator, examples, heldout, config)
    mark = _mark(emulator, parts, config)
    if work is not None and resume and checkpoint.mark_of(work) not in (None, mark):
        raise UserError(
            f"The interrupted run in {str(work)!r} was on another emulator, other data or settings; give the "
            "same ones, or leave resume away to start over."
        )
    keep = work or Path(tempfile.mkdtemp(prefix="offsite-"))
    try:
        return _trained(emulator, parts, config, work=keep, mark=mark, resume=resume, what=what)
    finally:
        if work is None:
            shutil.rmtree(keep, ignore_errors=True)


def learning_rate(emulator: Emulator, examples: Rows, config: TuneConfig) -> Rate:
    """The learning rate that `tune` would take: as asked, or chosen here; the emulator is as before."""
    if config.lr is not None:
        return Rate(config.lr, "given")
    parts = _parted(emulator, examples, None, config)
    set_seed(config.seed)
    with adapter_trainable(emulator, config) as model:
        return _rate(model, emulator, parts, config)


def _parted(emulator: Emulator, examples: Rows, heldout: Rows | None, config: TuneConfig) -> Parted:
    def rows(of: Rows) -> list[Encoded]:
        return (of if isinstance(of, Prepared) else training_rows(emulator, of, config)).rows

    return Parted.of(rows(examples), None if heldout is None else rows(heldout), config)


def _mark(emulator: Emulator, parts: Parted, config: TuneConfig) -> str:
    """Return a digest of everything that decides the result of a tuning."""
    start = emulator.digest or (emulator.origin, emulator.method)
    whole = hashlib.sha256(repr((start, replace(config, report_to=()), len(parts.train))).encode())
    for row in (*parts.train, *parts.heldout):
        whole.update(repr(row).encode())
    return whole.hexdigest()


def _trained(
    emulator: Emulator,
    parts: Parted,
    config: TuneConfig,
    *,
    work: Path,
    mark: str,
    resume: bool,
    what: str,
) -> Tuned:
    """Train in place."""
    notes = _notes(work, mark) if resume else {}
    sites = lora_sites(emulator)
    set_seed(config.seed)
    with adapter_trainable(emulator, config) as model:
        taken = Rate.of(notes["rate"]) if notes else _rate(model, emulator, parts, config)
        steps = config.steps_for(len(parts.train))
        curve = fit(
            model, _data(emulator, parts), config.training(steps, taken.lr), work=work, mark=mark,
            resume=resume, notes={"rate": asdict(taken)}, what=what,
        )  # fmt: skip
        found = lora_tensors(model, sites) if config.lora_rank else None
    adapter = _adapter(emulator, config, found, taken.lr)
    adapter.curve, adapter.rate = curve, taken
    adapter.config = replace(config, epochs=None, steps=steps, lr=taken.lr)
    return adapter


def _notes(work: Path, mark: str) -> Mapping[str, Any]:
    """What the interrupted run in `work` had settled, if it is this one."""
    facts = checkpoint.facts_of(work)
    return facts["notes"] if facts.get("mark") == mark else {}


def _rate(model: torch.nn.Module, emulator: Emulator, parts: Parted, config: TuneConfig) -> Rate:
    if config.lr is not None:
        return Rate(config.lr, "given")
    width = emulator.model.config.get_text_config().hidden_size
    first = rate.by_width(width, lora=config.lora_rank is not None)
    asked = config.training(config.steps_for(len(parts.train)), first)
    return rate.choose(model, _data(emulator, parts), asked)


def _data(emulator: Emulator, parts: Parted) -> TrainingData:
    return TrainingData(parts.train, parts.heldout, answer_loss, pad(emulator.padding))


def _adapter(emulator: Emulator, config: TuneConfig, found: dict[str, torch.Tensor] | None, lr: float) -> Tuned:
    tensors = found or Adapter.of(emulator.model, emulator.origin).tensors
    if not all(map(bundle.finite, tensors.values())):
        raise UserError(f"The tuning ran away to NaN or infinity; take an lr lower than {lr:g}.")
    if config.lora_rank is None:
        return Tuned(tensors, emulator.origin, emulator.digest)
    lora = Lora(rank=config.lora_rank, alpha=config.lora_alpha)
    adapter = Tuned(tensors, emulator.origin, emulator.digest, lora)
    swap(emulator.model, adapter)
    return adapter
