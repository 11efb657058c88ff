"""FLAP: take out what fluctuates least in what it adds, and put its mean into a bias; training-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import (
    Candidates,
    blueprint,
    by_share,
    candidates,
    channel_cost,
    choose,
    whole_where_free,
)
from offsite.owner.factors import watched, whitened_ranks
from offsite.owner.inputs import Inputs, inputs
from offsite.owner.methods.base import Granularity, Method, check_keep
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores, Means

_TINY = 1e-12  # beside a spread of scores; where all are equal


@dataclass(frozen=True)
class FLAP(Method):
    """Keep the feed-forward channels, and the ranks of attention, whose part of the output fluctuates the most.

    A channel scores the variance of what is read of it times the squared norm of what it writes. Scores are
    standardised in each layer and compete over the whole stack. What goes adds its mean to the bias, where the
    linear has one; llama's and gemma's have none, and do without. The paper prunes whole heads in attention,
    which no emulator here can do without; ranks stand for them, by the same variance.
    """

    name: ClassVar[str] = "flap"
    paper: ClassVar[str] = "FLAP, arXiv 2312.11983"
    granularity: ClassVar[Granularity] = "components"
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Score the channels and the ranks of attention of each middle layer."""
        decoder = Decoder.of(model)

        def linears(layer: int) -> list[str]:
            return [*decoder.attention(layer), decoder.feed_forward(layer).down]

        for layer, seen in watched(model, split, parts, tokens, linears, inputs):
            down, found = decoder.feed_forward(layer).down, dict[str, Tensor]()
            for name, read in seen.items():
                scored = channel_scores if name == down else rank_scores
                found |= scored(decoder, layer, name, read)
            parts.put(str(layer), found)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep what scores highest in the whole stack."""
        check_keep(keep)
        among = standardised(candidates(profile))
        rule = whole_where_free(by_share(0.0, lambda _: "all"))
        return blueprint(profile, among, choose(profile, among, keep, rule))


def channel_scores(decoder: Decoder, layer: int, down: str, read: Inputs) -> dict[str, Tensor]:
    """Return the records of the channels that `down` reads: scores, and means where it has a bias."""
    weight = decoder.matrix(layer, down).float()
    score = read.covariance.diagonal().clamp(min=0) * weight.square().sum(0)
    found = ChannelScores(score, channel_cost(decoder, layer)).tensors(down)
    return found | _means(decoder, layer, down, weight * read.mean, weight)


def rank_scores(decoder: Decoder, layer: int, name: str, read: Inputs) -> dict[str, Tensor]:
    """Return the records of a linear's ranks: the components, scores, and means where it has a bias.

    They are those of W R with R RT the covariance of what it reads, and score the variance that they add.
    """
    factors, scores = whitened_ranks(decoder.matrix(layer, name).float(), read.covariance)
    added = factors.up * (factors.down @ read.mean)
    return factors.tensors(name) | scores.tensors(name) | _means(decoder, layer, name, added)


def standardised(among: Sequence[Candidates]) -> list[Candidates]:
    """Return the candidates with scores of mean 0 and standard deviation 1 within each."""
    return [
        replace(each, score=(each.score - each.score.mean()) / (each.score.std(correction=0) + _TINY))
        for each in among
    ]


def _means(
    decoder: Decoder, layer: int, name: str, added: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    bias: Tensor | None = getattr(decoder.layers[layer].get_submodule(name), "bias", None)
    return {} if bias is None else Means(added, bias.detach().float(), weight).tensors(name)
