"""Checkpoints of a training: tensors and JSON in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from offsite.files.atomic import remove, staged

_FILE = "training.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")

Facts = dict[str, Any]
"""What of a checkpoint is no tensor; JSON."""


def write(work: Path, step: int, tensors: Mapping[str, Tensor], facts: Facts, best: int | None) -> None:
    """Write the checkpoint of `step`, then remove all but it and the `best` one, or the one before it."""
    with staged(work / f"checkpoint-{step}") as folder:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / _FILE, metadata={"facts": json.dumps(facts)})
    earlier = [number for number, _ in _newest_first(work) if number != step]
    kept = {step, best if best in earlier else max(earlier, default=step)}
    for number in set(earlier) - kept:
        remove(work / f"checkpoint-{number}")


def read(work: Path, step: int) -> tuple[dict[str, Tensor], Facts]:
    """The tensors and facts of the checkpoint of `step`."""
    with safe_open(work / f"checkpoint-{step}" / _FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _facts(file)  # noqa: SIM118


def last_step(work: Path) -> int | None:
    """The step of the newest readable checkpoint in `work`; None if there is none."""
    for step, file in _newest_first(work):
        try:
            with safe_open(file, framework="pt") as opened:
                _facts(opened)
        except (SafetensorError, OSError, ValueError, KeyError):  # torn by a machine that lost its power
            continue
        return step
    return None


def has_checkpoint(work: Path) -> bool:
    """Whether an interrupted run in `work` can be resumed."""
    return last_step(work) is not None


def facts_of(work: Path) -> Facts:
    """The facts of the newest checkpoint in `work`; none if there is none."""
    step = last_step(work)
    if step is None:
        return {}
    with safe_open(work / f"checkpoint-{step}" / _FILE, framework="pt") as file:
        return _facts(file)


def mark_of(work: Path) -> str | None:
    """The fingerprint of the interrupted run in `work`; None if there is none."""
    return facts_of(work).get("mark")


def optimizer_state(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> dict[str, Tensor]:
    """The parameters by name, and their AdamW moments as `NAME.MOMENT`: zeros before the first step."""
    state: dict[str, Tensor] = dict(parameters)
    for name, parameter in parameters.items():
        moments = optimizer.state.get(parameter) or {
            "step": torch.tensor(0.0),
            **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
        }
        state |= {f"{name}.{moment}": tensor for moment, tensor in moments.items()}
    return state


@torch.no_grad()
def restore_optimizer(
    parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, state: Mapping[str, Tensor]
) -> None:
    """Set parameters and moments to what `optimizer_state` gave."""
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
        if state[f"{name}.step"]:
            moments = {moment: state[f"{name}.{moment}"].to(parameter.device) for moment in _MOMENTS}
            step = state[f"{name}.step"].clone()  # AdamW keeps it on the CPU unless it is fused
            fused = optimizer.defaults.get("fused")
            optimizer.state[parameter] = {"step": step.to(parameter.device) if fused else step, **moments}


def _facts(file: Any) -> Facts:
    facts: Facts = json.loads(file.metadata()["facts"])
    return facts


def _newest_first(work: Path) -> Iterator[tuple[int, Path]]:
    found = {int(file.parent.name.rsplit("-", 1)[1]): file for file in work.glob(f"checkpoint-[0-9]*/{_FILE}")}
    yield from sorted(found.items(), reverse=True)
