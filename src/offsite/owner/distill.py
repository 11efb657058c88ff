"""Aligning an emulator's middle with the model's, which the owner may do before sending it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from offsite import bundle
from offsite.decoder import Decoder, own
from offsite.emulator import Emulator
from offsite.training import Batch, Point, TrainConfig, fit


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
    inner, outer = Decoder.of(emulator.model), Decoder.of(model)
    own(
        emulator.model,
        [inner.name(i, n) for i in emulator.split.middle(len(inner)) for n in inner.tensors(i)],
    )
    middle = emulator.split.middle(len(inner))
    emulator.model.requires_grad_(False)
    for index in middle:
        inner.layers[index].requires_grad_(True)
    teacher_end = emulator.split.middle(len(outer)).stop

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            told = model(ids, output_hidden_states=True, use_cache=False).hidden_states[teacher_end].float()
        out = student(ids, output_hidden_states=True, use_cache=False)
        apart = (told - out.hidden_states[middle.stop].float()) / told.pow(2).mean().sqrt()
        lm = cross_entropy(out.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        total: Tensor = lm + config.align * apart.pow(2).mean()
        return total

    rows = [{"input_ids": row} for row in tokens]
    curve = fit(
        emulator.model,
        rows,
        [],
        config,
        loss=loss,
        collate=_stack,
        work=work,
        mark=_mark(emulator, tokens, config),
        resume=resume,
        what="Distilling",
    )
    emulator.model.requires_grad_(False)
    return curve


def _mark(emulator: Emulator, tokens: Tensor, config: DistillConfig) -> str:
    """Stands for all that the result hangs on."""
    start = bundle.digest(emulator.model.state_dict() | {"tokens": tokens})
    return hashlib.sha256(repr((emulator.origin, start, config)).encode()).hexdigest()


def _stack(rows: list[Any]) -> Batch:
    return {"input_ids": torch.stack([row["input_ids"] for row in rows])}
