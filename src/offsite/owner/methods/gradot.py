"""GradOT: take out what the adapter's gradients feel least, training-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder, FeedForward
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.components import (
    Candidates,
    blueprint,
    by_price,
    by_share,
    candidates,
    choose,
    root,
    sizes_of,
)
from offsite.owner.curvature import Curvature, curvature
from offsite.owner.factors import evened, fisher_ranks, groups, removed
from offsite.owner.findings import Findings
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.profile import Profile
from offsite.progress import track

_ALWAYS = 0.05  # the share of each matrix's ranks that stays whatever their score, as in the paper


@dataclass(frozen=True)
class GradOT(Method):
    """Low-rank attention and pruned feed-forward channels, by a gradient-preserving compression score.

    A component d of a weight (d is what its removal adds) is worth ||H d|| - lambda * (dl/dW . d), H being
    the Fisher information as a Kronecker product of G = E[g gT] and A = E[x xT].
    """

    name: ClassVar[str] = "gradot"
    paper: ClassVar[str] = "GradOT, arXiv 2507.04455"
    planning: ClassVar[frozenset[str]] = frozenset({"lambda_attention", "lambda_channels", "ranks"})
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)  # as short as what adapters are tuned on
    form: Literal["fisher", "paper"] = "fisher"
    """`paper`: singular components of the weight itself, scored by the 1-norm of H d; the same share of all
    ranks as of all channels stays. `fisher`: scored by dT H d, the second order of the loss; singular
    components of G^1/2 W A^1/2, channels by what the others cannot mend; one price for all parameters; the
    channels that stay take over what they can."""
    evenly: float = 1.0
    """How much of G's mean energy is added to every direction, in the form `fisher`: so what the loss hardly
    feels now is kept too, for the adapter's gradients may run through it once it moves."""
    lambda_attention: float = 0.0
    """The privacy term's weight for ranks: how much more readily those go that, taken out, raise the loss."""
    lambda_channels: float = 0.0
    """The same for channels."""
    ranks: float = 1.0
    """At most this share of the ranks of an attention matrix stays, in the form `fisher`."""
    labels: Literal["text", "sampled"] = "text"
    """Whose next tokens make the Fisher information: the text's own, or drawn from the model."""

    def learn(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, findings: Findings) -> None:
        """Watch the layers in groups that fit into memory, then factorise and score each."""
        assert tokens is not None, "calibration asks for tokens"
        decoder = Decoder.of(model)
        missing = findings.lacking(split.middle(len(decoder)))
        sampled = 0 if self.labels == "sampled" else None
        for group in groups(decoder, {i: self._watched(decoder, i) for i in missing}):
            found = curvature(model, group, tokens, sampled=sampled)
            for layer in track(group, "Factorising", len(group)):
                findings.put(str(layer), self._learnt(decoder, layer, found.pop(layer)))

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """What is worth its price, or in the paper's form the best share of ranks and of channels."""
        check_keep(keep)
        among = [self._with_privacy(each, profile) for each in candidates(profile)]
        if self.form == "paper":
            rule = by_share(_ALWAYS, lambda each: each.channels)
        else:
            rule = by_price(_ALWAYS, self.ranks)
        return blueprint(profile, among, choose(profile, among, keep, rule))

    def _with_privacy(self, each: Candidates, profile: Profile) -> Candidates:
        weight = self.lambda_channels if each.channels else self.lambda_attention
        if not weight:
            return each
        slope = profile.findings[f"{each.layer}/{each.name}.slope"].double()
        return replace(each, score=each.score - weight * slope)

    def _watched(self, decoder: Decoder, layer: int) -> list[str]:
        """The linears that the scores hang on; the costly ones that write channels only in the paper's form."""
        feed = decoder.feed_forward(layer)
        ups = feed.ups if self.form == "paper" else ()
        return [*decoder.attention(layer), feed.down, *ups]

    def _learnt(self, decoder: Decoder, layer: int, seen: dict[str, Curvature]) -> dict[str, Tensor]:
        factorise, score = _paper_ranks, _paper_channels
        if self.form == "fisher":
            factorise, score = fisher_ranks, _channels
            seen = {name: evened(told, self.evenly) for name, told in seen.items()}
        found = sizes_of(decoder, layer)
        for name in decoder.attention(layer):
            told = factorise(decoder.matrix(layer, name).float(), seen[name])
            found |= {f"{name}.{part}": tensor for part, tensor in told.items()}
        feed = decoder.feed_forward(layer)
        told = score(decoder, layer, feed, seen)
        return found | {f"{feed.down}.{part}": tensor for part, tensor in told.items()}


def _paper_ranks(weight: Tensor, seen: Curvature) -> dict[str, Tensor]:
    """The singular components of `weight`, worth s_k |G u_k|_1 |A v_k|_1."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    score = s * (seen.outputs @ u).abs().sum(0) * (seen.inputs @ vt.T).abs().sum(0)
    up = u * s
    return {"up": up, "down": vt, "score": score, "slope": removed(up, vt, seen.slope)}


def _channels(decoder: Decoder, layer: int, feed: FeedForward, seen: dict[str, Curvature]) -> dict[str, Tensor]:
    """The loss to be expected from a channel's removal once all the others mend it: wT G w / (A^-1)_jj.

    (Optimal brain surgeon, Hassibi and Stork 1993, with a Kronecker-factored Fisher.)
    """
    told = seen[feed.down]
    weight = decoder.matrix(layer, feed.down)
    felt = ((told.outputs @ weight.float()) * weight.float()).sum(0)  # (channels)
    alone = torch.cholesky_inverse(root(told.inputs)).diagonal().reciprocal()
    slope = -(told.slope * weight.float()).sum(0)
    return {"score": felt * alone.float(), "slope": slope, "moment": told.inputs, "weight": weight}


def _paper_channels(
    decoder: Decoder, layer: int, feed: FeedForward, seen: dict[str, Curvature]
) -> dict[str, Tensor]:
    """The 1-norm of H d for a channel's column, |G w_j|_1 |A e_j|_1, plus its rows', |G e_j|_1 |A w_j|_1."""
    score, slope = torch.zeros(2, feed.width, device=decoder.matrix(layer, feed.down).device)
    for name in (feed.down, *feed.ups):
        told, weight = seen[name], decoder.matrix(layer, name).float()
        if name == feed.down:
            score += (told.outputs @ weight).abs().sum(0) * told.inputs.abs().sum(0)
            slope -= (told.slope * weight).sum(0)
            continue
        rows = told.outputs.abs().sum(0) * (weight @ told.inputs).abs().sum(1)
        score += rows.view(-1, feed.width).sum(0)  # fused linears write a channel by several rows
        slope -= (told.slope * weight).sum(1).view(-1, feed.width).sum(0)
    return {"score": score, "slope": slope}
