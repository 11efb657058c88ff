"""The plain baseline of GradOT: truncated singular values and channels by their size, no text read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import blueprint, by_share, candidates, choose, sizes_of
from offsite.owner.factors import plain_ranks
from offsite.owner.findings import Findings
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.profile import Profile
from offsite.progress import track


@dataclass(frozen=True)
class SVD(Method):
    """Keep the largest singular values of attention and the largest feed-forward channels, everywhere alike."""

    name: ClassVar[str] = "svd"
    paper: ClassVar[str] = "Eckart and Young 1936; magnitude pruning"

    def learn(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, findings: Findings) -> None:
        """Factorise the attention of each layer and measure its channels."""
        decoder = Decoder.of(model)
        missing = findings.lacking(split.middle(len(decoder)))
        for layer in track(missing, "Factorising", len(missing)):
            found = sizes_of(decoder, layer)
            for name in decoder.attention(layer):
                told = plain_ranks(decoder.matrix(layer, name).float())
                found |= {f"{name}.{part}": tensor for part, tensor in told.items()}
            feed = decoder.feed_forward(layer)
            rows = (decoder.matrix(layer, up).float().square().sum(1).view(-1, feed.width) for up in feed.ups)
            columns = decoder.matrix(layer, feed.down).float().square().sum(0)
            found[f"{feed.down}.score"] = torch.cat([*rows, columns[None]]).sum(0).sqrt()
            findings.put(str(layer), found)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """The same share of every matrix's ranks and of every layer's channels."""
        check_keep(keep)
        among = candidates(profile)
        rule = by_share(0.0, lambda each: (each.layer, each.name))
        return blueprint(profile, among, choose(profile, among, keep, rule))
