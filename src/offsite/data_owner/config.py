"""Settings of a tuning. Importing this imports no torch, so commands take their help from here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import date as calendar

from offsite.data.examples import DATE
from offsite.errors import UserError
from offsite.training.config import LoopConfig, TrainConfig, above_zero

EPOCHS = 3
"""Of a tuning that is asked for neither epochs nor steps."""
MANY_STEPS = 2_000
"""More than so many steps, such a tuning takes for its first epoch only."""


@dataclass(frozen=True)
class TuneConfig(LoopConfig):
    """How to tune an adapter."""

    epochs: float | None = None
    """How often to see each row at the most; early stopping may end sooner.

    Without epochs and steps 3 times; where that is over 2,000 steps, less often, but each row once.
    """
    steps: int | None = None
    """Optimizer steps at the most, in place of epochs."""
    lr: float | None = None
    """Peak learning rate of AdamW; none: by the model's width, and then by a short trial on held-out rows.

    Warmed up over a twentieth of the steps, then a cosine down to zero.
    """
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
        for name in ("epochs", "steps", "lr"):
            above_zero(name, getattr(self, name))
        if self.epochs is not None and self.steps is not None:
            raise UserError("epochs and steps both say how long to tune; give one of them.")
        for name, value in (("lora_rank", self.lora_rank), ("lora_alpha", self.lora_alpha)):
            if value is not None and not 1 <= value <= 4096:
                raise UserError(f"{name} must be from 1 to 4096, not {value}.")
        try:
            calendar.fromisoformat(self.date)
        except ValueError as error:
            raise UserError(f"date must be a day such as {DATE}, not {self.date!r:.40}.") from error

    def steps_for(self, rows: int) -> int:
        """How many steps to take on so many rows."""
        if self.steps is not None:
            return self.steps
        epoch = rows / self.examples_a_step
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * epoch))
        return max(1, math.ceil(min(EPOCHS * epoch, max(epoch, MANY_STEPS))))

    def training(self, steps: int, lr: float) -> TrainConfig:
        """What the training loop is told."""
        shared = {field.name: getattr(self, field.name) for field in fields(LoopConfig)}
        return TrainConfig(**shared, steps=steps, lr=lr)
