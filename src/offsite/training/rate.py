"""The learning rate: by the model's width, then by a short trial on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from offsite.training.config import TrainConfig
from offsite.training.loop import RunawayError, TrainingData, fit

_WIDTH, _AT_WIDTH, _POWER = 576, 2e-4, 1.5  # docs/decisions.md: 1.0e-4 at 896, 3.0e-5 at 2048
_HIGHEST = 1e-3
_LORA = 10.0
_SHARES = (1.0, 1 / 3, 1 / 10)  # of the rate by width, which are tried
TRIALS = len(_SHARES)
"""How many rates a trial tries."""
_OF_STEPS, _FEWEST = 40, 8  # a trial of one rate is a fortieth of the run, and no fewer steps
_LEAST_STEPS, _LEAST_ROWS = 100, 16  # held out; with fewer a trial costs too much or says too little


@dataclass(frozen=True)
class Rate:
    """A learning rate, and why it was taken."""

    lr: float
    how: Literal["given", "width", "trial"]
    steps: int = 0
    """Of the trial of each rate."""
    tried: tuple[tuple[float, float | None], ...] = ()
    """Each rate with its held-out loss after those steps; None where that ran away."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Rate:
        """Read it back from JSON."""
        return cls(**{**found, "tried": tuple((lr, loss) for lr, loss in found["tried"])})

    def __str__(self) -> str:
        if self.how == "given":
            return f"Learning rate {self.lr:.3g}, as asked."
        if self.how == "width":
            return f"Learning rate {self.lr:.3g}, by the model's width; there is too little here for a trial."
        losses = (f"{'none' if loss is None else format(loss, '.3f')} at {lr:.3g}" for lr, loss in self.tried)
        return (
            f"Learning rate {self.lr:.3g}, by a trial of {self.steps} steps; held-out loss {', '.join(losses)}."
        )


def by_width(width: int, *, lora: bool = False) -> float:
    """The rate that a model of this hidden size is likely to bear; ten times as large for a LoRA."""
    rate: float = min(_HIGHEST, _AT_WIDTH * (_WIDTH / width) ** _POWER)
    return rate * _LORA if lora else rate


def trial_steps(steps: int, heldout: int) -> int:
    """How many steps to try each rate before a run of so many; 0: no trial."""
    if steps < _LEAST_STEPS or heldout < _LEAST_ROWS:
        return 0
    return max(_FEWEST, steps // _OF_STEPS)


def choose(model: nn.Module, data: TrainingData, config: TrainConfig) -> Rate:
    """Try the rate of `config` and lower ones before a run of it; the best by held-out loss.

    Afterwards what is trained in `model` is as it was, bit for bit.
    """
    steps = trial_steps(config.steps, len(data.heldout))
    if not steps:
        return Rate(config.lr, "width")
    short = replace(config, steps=steps, checks=1, report_to=())
    before = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
    tried = {}
    for lr in (config.lr * share for share in _SHARES):
        try:
            curve = fit(model, data, replace(short, lr=lr), work=None, what="Trying a learning rate")
            tried[lr] = curve[-1].heldout
        except RunawayError:
            tried[lr] = None
        finally:
            _restore(before)
    losses = {lr: found for lr, found in tried.items() if found is not None and math.isfinite(found)}
    best = min(losses, key=losses.__getitem__, default=min(tried))
    return Rate(best, "trial", steps, tuple((lr, losses.get(lr)) for lr in tried))


@torch.no_grad()
def _restore(parameters: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> None:
    for parameter, value in parameters:
        parameter.copy_(value)
        parameter.grad = None
