"""Contexts that change how a model runs, and restore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


def move(model: PreTrainedModel, where: torch.device | torch.dtype) -> PreTrainedModel:
    """Move a model, in place, to a device, or cast it to a type."""
    type(model).to(model, where)  # as a method it is typed without its `self`
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within; restore each module's mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no parameter require a gradient within; restore those that did afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
