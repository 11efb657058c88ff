"""ShortGPT: drop the layers that turn the states the least, training-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, Place
from offsite.owner.methods.base import Method, layers_to_keep
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.states import hidden_states


@dataclass(frozen=True)
class ShortGPT(Method):
    """Keep the layers of the greatest block influence: those that turn the states of tokens the most."""

    name: ClassVar[str] = "shortgpt"
    paper: ClassVar[str] = "ShortGPT, arXiv 2403.03853, section 3.1"
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Compute the block influence of every middle layer, mean over all tokens."""
        if "model" in parts.names:
            return
        assert tokens is not None, "calibration asks for tokens"
        middle = split.middle(len(Decoder.of(model)))
        total = torch.zeros(len(middle))
        for states in hidden_states(model, tokens, "Comparing layers"):
            total += torch.stack([influence(states[i], states[i + 1]).sum() for i in middle]).cpu()
        parts.put("model", {"influence": total / tokens.numel()})

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep the layers of the greatest influence, in their order."""
        best = profile.tensors["model/influence"].argsort(descending=True, stable=True)
        kept = best[: layers_to_keep(profile, keep)].sort().values.tolist()
        return tuple(Place(profile.middle[i]) for i in kept)


def influence(before: Tensor, after: Tensor) -> Tensor:
    """Return 1 - cos(before, after) for states (..., width) of a layer's input and output."""
    return 1 - cosine_similarity(before.float(), after.float(), dim=-1)
