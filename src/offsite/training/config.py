"""Settings of a training. Importing this imports no torch, so commands take their help from here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from offsite.errors import UserError


@dataclass(frozen=True)
class LoopConfig:
    """What every training has a say in, however long and fast it is."""

    batch_size: int = 8
    """Examples in one pass; a step takes `accumulate` passes."""
    accumulate: int = 1
    """Passes that one step adds up: the adapter of a batch that many times as large, the memory of one."""
    gradient_checkpointing: bool = False
    """Compute activations again for the gradients instead of keeping them: less memory, a third slower."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    seed: int = 0
    """Of the order of the examples, dropout and fresh LoRA weights."""
    checks: int = 5
    """How often, over the run, the held-out loss is taken and a checkpoint is written."""
    patience: int = 2
    """Stop after so many checks in a row without a better held-out loss."""
    report_to: tuple[str, ...] = ()
    """Trackers, by accelerate's names (tensorboard, mlflow, trackio, wandb); none: local files only.

    Tensorboard's files go to ./runs, or where TENSORBOARD_LOGGING_DIR says; the others have their own settings.
    """

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "checks", "patience"):
            above_zero(name, getattr(self, name))
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay must be zero or above, not {self.weight_decay}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to {2**32 - 1}, not {self.seed}.")
        if self.report_to:
            from offsite.training.trackers import check_trackers

            check_trackers(self.report_to)

    @property
    def examples_a_step(self) -> int:
        """How many examples a step sees."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How long and how fast to train."""

    steps: int = 150
    """Optimizer steps, at the most: early stopping may end sooner."""
    lr: float = 2e-4
    """Peak learning rate of AdamW; warmed up over a twentieth of the steps, then a cosine down to zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("steps", self.steps)
        above_zero("lr", self.lr)


def above_zero(name: str, value: float | None) -> None:
    """Refuse a setting that is zero, negative, infinite or no number; None passes."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{name} must be above zero, not {value}.")
