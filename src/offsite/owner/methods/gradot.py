"""GradOT in the Fisher norm: take out what loss and adapter gradients feel least, training-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from offsite.model.decoder import Decoder
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import (
    blueprint,
    by_price,
    by_share,
    candidates,
    channel_cost,
    choose,
    root,
    with_privacy,
)
from offsite.owner.curvature import Curvature
from offsite.owner.factors import evened, felt, felt_in_1_norm, fisher_ranks, plain_ranks, removed
from offsite.owner.methods import gradot_paper
from offsite.owner.methods.base import check_keep
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores, Factors, RankScores, Repair
from offsite.owner.scored import FLOOR, Scored


@dataclass(frozen=True)
class GradOT(Scored):
    """Keep the ranks of attention and the feed-forward channels that matter most to loss and adapter gradients.

    A component d of a weight (d is what its removal adds) scores dT H d - lambda * (dl/dW . d): the second
    order of the loss, H being the Fisher information as a Kronecker product of G = E[g gT] and A = E[x xT].
    Ranks are singular components of G^1/2 W A^1/2. One price for a parameter decides over ranks and channels,
    and the channels that stay take over what they can, by least squares. `gradot-paper` is as published.
    """

    name: ClassVar[str] = "gradot"
    paper: ClassVar[str] = "GradOT, arXiv 2507.04455"
    plan_knobs: ClassVar[frozenset[str]] = Scored.plan_knobs | {"ranks", "pool"}
    moved: ClassVar[Mapping[str, str]] = {
        "form": "form=paper is the method gradot-paper, and form=fisher is gradot; name that method instead."
    }
    basis: Literal["fisher", "plain"] = "fisher"
    """Whose singular components the ranks are: those of G^1/2 W A^1/2, or, as published, of the weight."""
    score: Literal["fisher", "l1"] = "fisher"
    """What a component scores: dT H d, or, as published, ||H d||_1."""
    pool: Literal["price", "kinds"] = "price"
    """What decides how much stays of each: one price for a parameter, or, as published, one share of all ranks
    and the same share of all channels."""
    mend: Annotated[bool, "true or false"] = True
    """Whether the channels that stay take over from those that go; as published they do not."""
    evenly: Annotated[float, "times the mean energy"] = 1.0
    """How much of G's mean energy is added to every direction: what the loss hardly feels now is kept too, for
    the adapter's gradients may pass through it once it has moved."""
    ranks: Annotated[float, "share, 0 to 1"] = 1.0
    """At most this share of the ranks of an attention matrix stays."""

    def linears(self, decoder: Decoder, layer: int) -> list[str]:
        """Return the linears of a layer whose curvature the scores need."""
        feed = decoder.feed_forward(layer)
        return [*decoder.attention(layer), feed.down, *(feed.ups if self.score == "l1" else ())]

    def scores(self, decoder: Decoder, layer: int, seen: Mapping[str, Curvature]) -> dict[str, Tensor]:
        """Return the records of a layer: components of attention, channels, and what repairs these."""
        seen = {name: evened(each, self.evenly) for name, each in seen.items()}
        found: dict[str, Tensor] = {}
        for name in decoder.attention(layer):
            for ranks in self._ranks(decoder.matrix(layer, name).float(), seen[name]):
                found |= ranks.tensors(name)
        down = decoder.feed_forward(layer).down
        channels, repair = channel_scores(decoder, layer, seen[down], mend=self.mend)
        if self.score == "l1":
            channels = gradot_paper.channel_scores(decoder, layer, seen)
        return found | channels.tensors(down) | (repair.tensors(down) if self.mend else {})

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep what scores above one price for all parameters."""
        check_keep(keep)
        among = with_privacy(candidates(profile), self.lambda_attention, self.lambda_channels)
        by_kind = by_share(FLOOR, lambda each: each.channels)
        rule = by_price(FLOOR, self.ranks) if self.pool == "price" else by_kind
        return blueprint(profile, among, choose(profile, among, keep, rule))

    def _ranks(self, weight: Tensor, seen: Curvature) -> tuple[Factors, RankScores]:
        if self.basis == "fisher":
            factors, ranks = fisher_ranks(weight, seen)
        else:
            factors, ranks = plain_ranks(weight)
            slope = removed(factors.up, factors.down, seen.slope)
            ranks = replace(ranks, score=felt(factors, seen), slope=slope)
        if self.score == "l1":
            ranks = replace(ranks, score=felt_in_1_norm(factors, seen))
        return factors, ranks


def channel_scores(
    decoder: Decoder, layer: int, seen: Curvature, *, mend: bool = True
) -> tuple[ChannelScores, Repair]:
    """Score channels by the loss to be expected once the others take over: wT G w / (A^-1)_jj.

    (Optimal brain surgeon, Hassibi and Stork 1993, with a Kronecker-factored Fisher.) Where they do not `mend`
    it, that is wT G w A_jj.
    """
    weight = decoder.matrix(layer, decoder.feed_forward(layer).down)
    felt = ((seen.outputs @ weight.float()) * weight.float()).sum(0)  # (channels)
    alone = seen.inputs.diagonal()
    if mend:
        alone = torch.cholesky_inverse(root(seen.inputs)).diagonal().reciprocal()
    slope = -(seen.slope * weight.float()).sum(0)
    scores = ChannelScores(felt * alone.float(), channel_cost(decoder, layer), slope)
    return scores, Repair(weight, seen.inputs)
