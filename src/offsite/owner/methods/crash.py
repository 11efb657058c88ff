"""CRaSh: cluster, remove and share layers, training-free."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, Place
from offsite.owner.methods.base import Method, layers_to_keep
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.states import hidden_states


@dataclass(frozen=True)
class Crash(Method):
    """Keep one layer of each cluster of similar neighbours, and let it stand in the places of the others."""

    name: ClassVar[str] = "crash"
    paper: ClassVar[str] = "CRaSh, arXiv 2310.15477, section 3"
    plan_knobs: ClassVar[frozenset[str]] = frozenset({"share"})
    calibration: ClassVar[tuple[int, int] | None] = (512, 64)
    share: Annotated[bool, "true or false"] = True
    """Whether kept layers also fill the places of the removed ones, so that the depth stays."""

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Compute linear CKA between the outputs of all middle layers, a sample being a block's last state.

        (A mean over the block would mostly compare the few huge activations of its first token.)
        """
        if "model" in parts.names:
            return
        assert tokens is not None, "calibration asks for tokens"
        middle = split.middle(len(Decoder.of(model)))
        outputs = [
            torch.stack([states[i + 1][:, -1].float() for i in middle])  # (M, batch, width)
            for states in hidden_states(model, tokens, "Comparing layers")
        ]
        parts.put("model", {"cka": linear_cka(torch.cat(outputs, dim=1))})

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep the middle layer of each cluster; with `share`, fill every place with the nearest of them."""
        middle = profile.middle
        clusters = cluster(profile.tensors["model/cka"], layers_to_keep(profile, keep))
        kept = [(group.start + group.stop - 1) // 2 for group in clusters]
        if not self.share:
            return tuple(Place(middle[i]) for i in kept)
        nearest = (min((abs(k - i), k) for k in kept)[1] for i in range(len(middle)))
        return tuple(Place(middle[i]) for i in nearest)


def linear_cka(outputs: Tensor) -> Tensor:
    """Compute linear centred kernel alignment between layers (arXiv 1905.00414, eq. 1 with linear kernels).

    `outputs`: (layers, samples, width); the result, (layers, layers), is 1 where outputs agree up to rotation
    and scale.
    """
    centred = (outputs - outputs.mean(dim=1, keepdim=True)).double()
    grams = torch.einsum("lsd,ltd->lst", centred, centred).flatten(1)  # (layers, samples^2)
    grams = torch.nn.functional.normalize(grams, dim=1)
    return (grams @ grams.T).float()


def cluster(similarity: Tensor, count: int) -> list[range]:
    """Merge the two neighbouring clusters of the greatest mean similarity until `count` are left."""
    clusters = [range(i, i + 1) for i in range(len(similarity))]
    while len(clusters) > count:
        pairs = pairwise(clusters)
        alike = [float(similarity[a.start : a.stop, b.start : b.stop].mean()) for a, b in pairs]
        best = alike.index(max(alike))
        clusters[best : best + 2] = [range(clusters[best].start, clusters[best + 1].stop)]
    return clusters
