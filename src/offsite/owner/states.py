"""What flows between a model's layers, read without touching the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offsite.model.decoder import output_at
from offsite.progress import track
from offsite.training.loop import autocast

_BATCH = 8  # blocks at once; bounds the states held in memory


def hidden_states(model: PreTrainedModel, tokens: Tensor, what: str) -> Iterator[tuple[Tensor, ...]]:
    """For each batch of `tokens` (blocks, length): the states (batch, length, width) before and after layers.

    Index i is the input of layer i, i + 1 its output; the last layer's output has passed the last norm.
    """
    batches = [tokens[i : i + _BATCH] for i in range(0, len(tokens), _BATCH)]
    for batch in track(batches, what, len(batches)):
        with torch.no_grad(), autocast(model):
            inputs = batch.to(model.device)
            yield output_at(model, input_ids=inputs, output_hidden_states=True).hidden_states


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; each module's mode is afterwards what it was."""
    modes = {module: module.training for module in model.modules()}
    model.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Within, no parameter asks for a gradient; afterwards those do that did."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
