"""Aligning an emulator's middle with the model's, which the owner may do before sending it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from offsite.bundles import bundle
from offsite.bundles.emulator import Emulator
from offsite.data.blocks import Source, blocks
from offsite.files.atomic import alone_in_work
from offsite.model.decoder import Decoder, longest, output_at, own
from offsite.model.harmonizers import harmonizer_tensors
from offsite.training.batches import Batch
from offsite.training.config import TrainConfig
from offsite.training.loop import Loss, Point, TrainingData, fit, trainable


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """How long and how fast to align."""

    steps: int = 200
    """Optimizer steps."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    length: int = 128
    """Tokens in a block of text."""
    align: float = 30.0
    """Weight of the alignment beside the language-modelling loss."""


def distill(
    emulator: Emulator,
    model: PreTrainedModel,
    tokens: Tensor,
    config: DistillConfig | None = None,
    *,
    work: Path,
    resume: bool = False,
) -> list[Point]:
    """Train the emulator's middle, in place, on `tokens` (blocks, length); returns the curve.

    Loss = LM + align * mean(((T - S) / rms(T))^2), T and S being the states after the model's and the
    emulator's middle, fed the same block input (Offsite-Tuning, arXiv 2302.04870, as its code has it).
    """
    config = config or DistillConfig()
    inner = Decoder.of(emulator.model)
    middle = emulator.split.middle(len(inner))
    names = [
        *(inner.name(i, name) for i in middle for name in inner.tensors(i)),
        *harmonizer_tensors(emulator.model),
    ]
    own(emulator.model, names)
    mark = _mark(emulator, tokens, config)
    state = emulator.model.state_dict(keep_vars=True)
    with trainable(emulator.model, {id(state[name]): state[name] for name in names}.values()):
        rows = [{"input_ids": row} for row in tokens]
        data = TrainingData(rows, [], _alignment(emulator, model, config.align), _stack)
        return fit(emulator.model, data, config, work=work, mark=mark, resume=resume, what="Distilling")


@alone_in_work
def align(
    emulator: Emulator,
    model: PreTrainedModel,
    texts: Source | Sequence[str],
    *,
    steps: int,
    seed: int,
    work: Path,
) -> None:
    """`distill` for so many `steps`, each on new blocks of the `texts` while they last; goes on from `work`."""
    assert emulator.tokenizer is not None, "the owner's emulators come with one"
    config = DistillConfig(steps=steps, seed=seed, length=min(DistillConfig.length, longest(model)))
    count = config.steps * config.batch_size
    tokens = blocks(texts, emulator.tokenizer, config.length, count, fewer=True)
    distill(emulator, model, tokens, config, work=work, resume=True)


def _alignment(emulator: Emulator, model: PreTrainedModel, weight: float) -> Loss:
    """The loss of `distill`; the head of the model, which teaches states only, is not computed."""
    ends = [emulator.split.middle(len(Decoder.of(m))).stop for m in (emulator.model, model)]

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            target = output_at(model, input_ids=ids, output_hidden_states=True).hidden_states[ends[1]].float()
        out = student(ids, output_hidden_states=True, use_cache=False)
        apart = (target - out.hidden_states[ends[0]].float()) / target.pow(2).mean().sqrt()
        lm = cross_entropy(out.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        total: Tensor = lm + weight * apart.pow(2).mean()
        return total

    return loss


def _mark(emulator: Emulator, tokens: Tensor, config: DistillConfig) -> str:
    """Return a digest of everything that decides the result."""
    start = bundle.digest(emulator.model.state_dict() | {"tokens": tokens})
    return hashlib.sha256(repr((emulator.origin, start, config)).encode()).hexdigest()


def _stack(rows: list[Any]) -> Batch:
    return {"input_ids": torch.stack([row["input_ids"] for row in rows])}
