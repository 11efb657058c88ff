"""GradOT as published: ranks and channels by a gradient-preserving compression score, training-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offsite.model.decoder import Decoder
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import blueprint, by_share, candidates, channel_cost, choose, with_privacy
from offsite.owner.curvature import Curvature
from offsite.owner.factors import felt_in_1_norm, plain_ranks, removed
from offsite.owner.methods.base import check_keep
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores, Factors, RankScores
from offsite.owner.scored import FLOOR, Scored


@dataclass(frozen=True)
class GradOTPaper(Scored):
    """Keep one share of all ranks of attention and of all feed-forward channels, by the paper's score.

    A component d of a weight (d is what its removal adds) scores ||H d||_1 - lambda * (dl/dW . d), H being the
    Fisher information as a Kronecker product of G = E[g gT] and A = E[x xT]; ranks are singular components of
    the weight itself. The knobs of `gradot` lead from here to there, piece by piece.
    """

    name: ClassVar[str] = "gradot-paper"
    paper: ClassVar[str] = "GradOT, arXiv 2507.04455, as published"

    def linears(self, decoder: Decoder, layer: int) -> list[str]:
        """Return the linears of a layer whose curvature the scores need."""
        feed = decoder.feed_forward(layer)
        return [*decoder.attention(layer), feed.down, *feed.ups]

    def scores(self, decoder: Decoder, layer: int, seen: Mapping[str, Curvature]) -> dict[str, Tensor]:
        """Return the records of a layer: components of attention, and channels."""
        found: dict[str, Tensor] = {}
        for name in decoder.attention(layer):
            for ranks in rank_scores(decoder.matrix(layer, name).float(), seen[name]):
                found |= ranks.tensors(name)
        return found | channel_scores(decoder, layer, seen).tensors(decoder.feed_forward(layer).down)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep the best share of all ranks, and the same share of all channels."""
        check_keep(keep)
        among = with_privacy(candidates(profile), self.lambda_attention, self.lambda_channels)
        rule = by_share(FLOOR, lambda each: each.channels)
        return blueprint(profile, among, choose(profile, among, keep, rule))


def rank_scores(weight: Tensor, seen: Curvature) -> tuple[Factors, RankScores]:
    """Return the singular components of `weight`, scored s_k |G u_k|_1 |A v_k|_1."""
    factors, plain = plain_ranks(weight)
    slope = removed(factors.up, factors.down, seen.slope)
    return factors, RankScores(felt_in_1_norm(factors, seen), plain.cost, slope)


def channel_scores(decoder: Decoder, layer: int, seen: Mapping[str, Curvature]) -> ChannelScores:
    """Score channels by |H d|_1: |G w_j|_1 |A e_j|_1 of the column, plus |G e_j|_1 |A w_j|_1 of the rows."""
    feed = decoder.feed_forward(layer)
    score, slope = torch.zeros(2, feed.width, device=decoder.matrix(layer, feed.down).device)
    for name in (feed.down, *feed.ups):
        here, weight = seen[name], decoder.matrix(layer, name).float()
        if name == feed.down:
            score += (here.outputs @ weight).abs().sum(0) * here.inputs.abs().sum(0)
            slope -= (here.slope * weight).sum(0)
            continue
        rows = here.outputs.abs().sum(0) * (weight @ here.inputs).abs().sum(1)
        score += rows.view(-1, feed.width).sum(0)  # fused linears write a channel by several rows
        slope -= (here.slope * weight).sum(1).view(-1, feed.width).sum(0)
    return ChannelScores(score, channel_cost(decoder, layer), slope)
