"""What flows between a model's layers, read without touching the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import output_at
from offsite.model.precision import autocast
from offsite.progress import track

_BATCH = 8  # blocks at once; bounds the states held in memory


def hidden_states(model: PreTrainedModel, tokens: Tensor, what: str) -> Iterator[tuple[Tensor, ...]]:
    """Yield for each batch of `tokens` (blocks, length) the states (batch, length, width) around layers.

    Index i is the input of layer i, i + 1 its output; the last layer's output has passed the last norm.
    """
    batches = [tokens[i : i + _BATCH] for i in range(0, len(tokens), _BATCH)]
    for batch in track(batches, what, len(batches)):
        with torch.no_grad(), autocast(model):
            inputs = batch.to(model.device)
            yield output_at(model, input_ids=inputs, output_hidden_states=True).hidden_states
