"""Selective Rank Compression: truncate attention, leaving out its smallest components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, everything
from offsite.owner.factors import factorise
from offsite.owner.methods.base import Granularity, Method
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.records import Factors


@dataclass(frozen=True)
class SRC(Method):
    """Keep every layer, and of its attention the largest components; feed-forward is untouched."""

    name: ClassVar[str] = "src"
    paper: ClassVar[str] = "ScaleOT, arXiv 2412.09812, Selective Rank Compression"
    plan_knobs: ClassVar[frozenset[str]] = frozenset({"beta"})
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)
    granularity: ClassVar[Granularity] = "knobs"
    sweep: ClassVar[Mapping[str, tuple[str, ...]]] = {"beta": ("0.3", "0.5", "0.7", "0.9")}
    beta: Annotated[float, "share, above 0 up to 1"] = 0.8
    """The share of each attention matrix's rank that stays."""
    norm: Literal["fisher", "plain"] = "fisher"
    """Which components are the largest: by their effect on the loss, or, as published, by singular value."""

    def __post_init__(self) -> None:
        check_beta(self.beta)

    @property
    def budgeted(self) -> bool:
        """False: beta decides how much stays."""
        return False

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Factorise the attention of each layer."""
        factorise(model, split, parts, tokens if self.norm == "fisher" else None)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep every layer, its attention truncated; beta alone decides how much stays, whatever `keep` is."""
        return truncated(everything(profile.split, len(profile.sizes)), profile.tensors, self.beta)


def check_beta(beta: float) -> None:
    """Refuse what is no share."""
    if not 0 < beta <= 1:
        raise UserError(f"beta is the share of attention's rank that stays, above 0 and up to 1, not {beta:g}.")


def truncated(blueprint: Blueprint, tensors: Mapping[str, Tensor], beta: float) -> Blueprint:
    """Keep the best share `beta` of the ranks of attention in each place where a layer stands as it is.

    `tensors` hold the `Factors` that `factorise` put there.
    """
    if beta == 1:
        return blueprint
    factored = Factors.places(tensors)

    def weights(layer: int) -> dict[str, Weight]:
        names = [name for part, name in factored if part == str(layer)]
        return {name: _best(Factors.read(tensors, layer, name), beta) for name in names}

    return tuple(
        place if place.harmonizer else replace(place, weights=weights(place.layer) | dict(place.weights))
        for place in blueprint
    )


def _best(factors: Factors, share: float) -> Weight:
    rank = max(1, round(share * len(factors.down)))
    return Weight.of(factors.up[:, :rank], factors.down[:rank])
