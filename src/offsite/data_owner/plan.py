"""What a tuning will do, before it starts: the rows, how often it sees them, and about how long that takes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from offsite.bundles.emulator import Emulator
from offsite.data.encoding import Encoded, Prepared
from offsite.data_owner.config import TuneConfig
from offsite.data_owner.trainable import adapter_trainable
from offsite.training.batches import answer_loss, pad
from offsite.training.loop import prepared
from offsite.training.rate import TRIALS, trial_steps

_FORWARD = 1 / 3  # the share of a pass with gradients that one without takes


@dataclass(frozen=True)
class Parted:
    """Rows to train on, and rows to stop early on."""

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]

    @classmethod
    def of(cls, rows: Sequence[Encoded], heldout: Sequence[Encoded] | None, config: TuneConfig) -> Parted:
        """Hold out the rows that are given, or a random choice of the others that the seed decides."""
        count = min(config.heldout, len(rows) // 10) if heldout is None and len(rows) >= 20 else 0
        mixed = random.Random(config.seed).sample(rows, len(rows))
        apart = mixed[:count] if heldout is None else heldout
        return cls([row._asdict() for row in mixed[count:]], [row._asdict() for row in apart])


@dataclass(frozen=True)
class Plan:
    """What a tuning will do."""

    rows: int
    heldout: int
    steps: int
    examples_a_step: int
    seconds: float
    """About so long, where early stopping does not end it sooner."""

    @property
    def times(self) -> float:
        """How often each row is seen, on average."""
        return self.steps * self.examples_a_step / self.rows


def plan(emulator: Emulator, data: Prepared, config: TuneConfig, heldout: Prepared | None = None) -> Plan:
    """Count the rows and steps of a tuning, and time a pass over rows of middling length."""
    parts = Parted.of(data.rows, heldout.rows if heldout else None, config)
    rows, apart = len(parts.train), len(parts.heldout)
    steps = config.steps_for(rows)
    tries = 0 if config.lr else TRIALS * trial_steps(steps, apart)
    checks = config.checks + 1 + (TRIALS if tries else 0)
    passes = (steps + tries) * config.accumulate + checks * apart / config.batch_size * _FORWARD
    return Plan(
        rows, apart, steps, config.examples_a_step, round(passes * _seconds(emulator, parts, config), 1)
    )


def _seconds(emulator: Emulator, parts: Parted, config: TuneConfig) -> float:
    """The time of a pass with gradients: the second of two, for the first one sets up."""
    by_length = sorted(parts.train, key=lambda row: len(row["input_ids"]))
    first = max(0, (len(by_length) - config.batch_size) // 2)
    batch = pad(emulator.padding)(by_length[first : first + config.batch_size])
    state, start = torch.get_rng_state(), 0.0
    with adapter_trainable(emulator, config) as model:
        model.train()
        with prepared(model, parts.train, config.gradient_checkpointing) as fast:
            device = emulator.model.device
            there = {name: tensor.to(device) for name, tensor in batch.items()}
            for _ in range(2):
                start = time.monotonic()
                with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                    loss = answer_loss(model, there)
                loss.backward()  # type: ignore[no-untyped-call]
                if torch.accelerator.is_available():
                    torch.accelerator.synchronize()
            end = time.monotonic()
        model.zero_grad()
    torch.set_rng_state(state)
    return end - start
