"""Truncated singular values and channels by size, without text: the plain baseline of GradOT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import blueprint, by_share, candidates, channel_cost, choose
from offsite.owner.factors import plain_ranks
from offsite.owner.methods.base import Granularity, Method, check_keep
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores
from offsite.progress import track


@dataclass(frozen=True)
class SVD(Method):
    """Keep the largest singular values of attention and the largest feed-forward channels, everywhere alike."""

    name: ClassVar[str] = "svd"
    paper: ClassVar[str] = "Eckart and Young 1936; magnitude pruning"
    granularity: ClassVar[Granularity] = "components"

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Factorise the attention of each layer and measure its channels."""
        decoder = Decoder.of(model)
        missing = parts.missing(split.middle(len(decoder)))
        for layer in track(missing, "Factorising", len(missing)):
            found: dict[str, Tensor] = {}
            for name in decoder.attention(layer):
                for record in plain_ranks(decoder.matrix(layer, name).float()):
                    found |= record.tensors(name)
            down = decoder.feed_forward(layer).down
            parts.put(str(layer), found | channel_sizes(decoder, layer).tensors(down))

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep the same share of every matrix's ranks and of every layer's channels."""
        check_keep(keep)
        among = candidates(profile)
        rule = by_share(0.0, lambda each: (each.layer, each.name))
        return blueprint(profile, among, choose(profile, among, keep, rule))


def channel_sizes(decoder: Decoder, layer: int) -> ChannelScores:
    """Score channels by the norm of all weights that write or read them."""
    feed = decoder.feed_forward(layer)
    rows = (decoder.matrix(layer, up).float().square().sum(1).view(-1, feed.width) for up in feed.ups)
    columns = decoder.matrix(layer, feed.down).float().square().sum(0)
    score = torch.cat([*rows, columns[None]]).sum(0).sqrt()
    return ChannelScores(score, channel_cost(decoder, layer))
