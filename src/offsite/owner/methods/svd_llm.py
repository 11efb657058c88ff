"""SVD-LLM: every linear truncated where its output changes least, training-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import blueprint, by_size, candidates, choose
from offsite.owner.factors import watched, whitened_ranks
from offsite.owner.inputs import inputs
from offsite.owner.methods.base import Granularity, Method, check_keep
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile


@dataclass(frozen=True)
class SVDLLM(Method):
    """Keep the ranks of all linears, attention and feed-forward, that add the most to their outputs.

    Singular components of W R, with R RT = E[x xT]: the nearest matrix of a rank by E|W x - W' x|^2. Each
    linear keeps the same share of its parameters. (The paper's second step, which trains the factors, is left
    out.)
    """

    name: ClassVar[str] = "svd-llm"
    paper: ClassVar[str] = "SVD-LLM, arXiv 2403.07378, truncation-aware data whitening"
    granularity: ClassVar[Granularity] = "components"
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Factorise the linears of each middle layer, whitened by what they read."""
        decoder = Decoder.of(model)

        def linears(layer: int) -> list[str]:
            feed = decoder.feed_forward(layer)
            return [*decoder.attention(layer), *feed.ups, feed.down]

        for layer, seen in watched(model, split, parts, tokens, linears, inputs):
            found: dict[str, Tensor] = {}
            for name, read in seen.items():
                for record in whitened_ranks(decoder.matrix(layer, name).float(), read.moment):
                    found |= record.tensors(name)
            parts.put(str(layer), found)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep the same share of every linear's parameters, in two factors."""
        check_keep(keep)
        among = candidates(profile)
        return blueprint(profile, among, choose(profile, among, keep, by_size))
