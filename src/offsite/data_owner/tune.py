"""Tuning the adapter through the emulator, on data that stays where it is."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date as calendar
from pathlib import Path

import torch
from transformers import set_seed

from offsite.bundles import bundle
from offsite.bundles.adapter import LORA_PARTS, Adapter, Lora, adapter_linears, adapter_tensors, swap
from offsite.bundles.emulator import Emulator
from offsite.data.encoding import DATE, Encoded, Prepared, prepare
from offsite.data.examples import Example
from offsite.errors import UserError
from offsite.files.atomic import alone_in_work
from offsite.model.decoder import Decoder, base_of, longest
from offsite.training.batches import answer_loss, pad
from offsite.training.checkpoint import mark_of
from offsite.training.loop import Point, TrainConfig, fit, trainable


@dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """How to tune an adapter."""

    lora_rank: int | None = None
    """Train a LoRA of this rank on every linear of the adapter layers; none: train the layers whole."""
    lora_alpha: int = 32
    """Scale of the LoRA: its update counts alpha / rank times."""
    max_length: int = 512
    """Tokens of an example, or what the model reads if that is less.

    Longer texts are split into blocks; other examples lose their prompt's start.
    """
    heldout: int = 32
    """Examples set aside to stop early on; never more than a tenth, none below twenty examples."""
    date: str = DATE
    """The day that a chat template prints as today, YYYY-MM-DD; fixed, so that a run repeats on another day."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("lora_rank", self.lora_rank), ("lora_alpha", self.lora_alpha)):
            if value is not None and not 1 <= value <= 4096:
                raise UserError(f"{name} must be from 1 to 4096, not {value}.")
        try:
            calendar.fromisoformat(self.date)
        except ValueError as error:
            raise UserError(f"date must be a day such as {DATE}, not {self.date!r:.40}.") from error


@dataclass
class Tuned(Adapter):
    """An adapter fresh from tuning, with what only the data owner may see."""

    curve: Sequence[Point] = field(default=(), compare=False)
    """Loss by step; in memory only, it is in no bundle."""


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
    examples: Sequence[Example] | Prepared,
    config: TuneConfig | None = None,
    *,
    work: Path | None = None,
    resume: bool = False,
    what: str = "Tuning",
) -> Tuned:
    """Tune the adapter layers of `emulator` on `examples`, answer tokens only, and return them.

    `examples` may be the `training_rows` made of them, with the same config.
    In place: afterwards the emulator holds the tuned adapter; nothing else in it has changed. Checkpoints go
    to `work` (a temporary folder if none), from which `resume` continues to the same result. Raises UserError
    where there is nothing to learn from, where `resume` finds a run of other data or settings, and where the
    numbers run away to NaN or infinity.
    """
    config = config or TuneConfig()
    data = examples if isinstance(examples, Prepared) else training_rows(emulator, examples, config)
    rows = data.rows
    mark = _mark(emulator, rows, config)
    if work is not None and resume and mark_of(work) not in (None, mark):
        raise UserError(
            f"The interrupted run in {str(work)!r} was on another emulator, other data or settings; give the "
            "same ones, or leave resume away to start over."
        )
    keep = work or Path(tempfile.mkdtemp(prefix="offsite-"))
    try:
        found, curve = _trained(emulator, rows, config, work=keep, mark=mark, resume=resume, what=what)
    finally:
        if work is None:
            shutil.rmtree(keep, ignore_errors=True)
    return _tuned(emulator, config, found, curve)


def _mark(emulator: Emulator, rows: Sequence[Encoded], config: TuneConfig) -> str:
    """Return a digest of everything that decides the result of a tuning."""
    start = emulator.digest or (emulator.origin, emulator.method)
    whole = hashlib.sha256(repr((start, replace(config, report_to=()))).encode())
    for row in rows:
        whole.update(repr(row).encode())
    return whole.hexdigest()


def _trained(
    emulator: Emulator,
    rows: list[Encoded],
    config: TuneConfig,
    *,
    work: Path,
    mark: str,
    resume: bool,
    what: str,
) -> tuple[dict[str, torch.Tensor] | None, list[Point]]:
    """Train in place; the LoRA, if it is one, and the curve."""
    train, heldout = _set_aside(rows, config)
    collate = pad(emulator.padding)
    sites = _lora_sites(emulator)
    set_seed(config.seed)
    with _trainable(emulator, config) as model:
        curve = fit(
            model, [row._asdict() for row in train], [row._asdict() for row in heldout], config,
            loss=answer_loss, collate=collate, work=work, mark=mark, resume=resume, what=what,
        )  # fmt: skip
        return (_lora(model, sites) if config.lora_rank else None), curve


def _tuned(
    emulator: Emulator, config: TuneConfig, found: dict[str, torch.Tensor] | None, curve: list[Point]
) -> Tuned:
    tensors = found or Adapter.of(emulator.model, emulator.origin).tensors
    if not all(map(bundle.finite, tensors.values())):
        raise UserError(f"The tuning ran away to NaN or infinity; take an lr lower than {config.lr:g}.")
    if config.lora_rank is None:
        return Tuned(tensors, emulator.origin, emulator.digest, curve=curve)
    lora = Lora(rank=config.lora_rank, alpha=config.lora_alpha)
    adapter = Tuned(tensors, emulator.origin, emulator.digest, lora, curve=curve)
    swap(emulator.model, adapter)
    return adapter


def _set_aside(rows: list[Encoded], config: TuneConfig) -> tuple[list[Encoded], list[Encoded]]:
    """Rows to train on, rows to stop early on: a random choice that the seed decides."""
    count = min(config.heldout, len(rows) // 10) if len(rows) >= 20 else 0
    order = random.Random(config.seed).sample(range(len(rows)), len(rows))
    return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]


@contextmanager
def _trainable(emulator: Emulator, config: TuneConfig) -> Iterator[torch.nn.Module]:
    """The emulator's model with just the adapter to be trained; as it was, afterwards."""
    if config.lora_rank:
        with _with_lora(emulator, config) as wrapped:
            yield wrapped
        return
    with trainable(emulator.model, adapter_tensors(emulator.model, emulator.split).values()):
        yield emulator.model


@contextmanager
def _with_lora(emulator: Emulator, config: TuneConfig) -> Iterator[torch.nn.Module]:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank or 0,
        lora_alpha=config.lora_alpha,
        target_modules=list(_lora_sites(emulator).values()),
        fan_in_fan_out=any(adapter_linears(emulator.model, emulator.split).values()),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(emulator.model, lora)
    try:
        yield wrapped
    finally:
        bare = base_of(wrapped.unload())
        bare.requires_grad_(False).train(False)
        emulator.model = bare


def _lora_sites(emulator: Emulator) -> dict[str, str]:
    """The adapter layers' linear modules: name by place, to name in the emulator's model."""
    decoder = Decoder.of(emulator.model)
    places = emulator.split.adapter(len(decoder))
    return {f"{p}.{name}": decoder.name(i, name) for p, i in places.items() for name in decoder.linears(i)}


def _lora(wrapped: torch.nn.Module, sites: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """What peft trained, by place instead of by the emulator's layer number."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    found = {
        f"{site}.{part}": tensors[f"base_model.model.{name}.{part}"].detach().clone()
        for site, name in sites.items()
        for part in LORA_PARTS
    }
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(found), f"peft trained more than was asked: {trained}"
    return found
