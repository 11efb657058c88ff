"""Selective Rank Compression: blur attention by leaving out its smallest components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, everything
from offsite.owner.factors import factorise
from offsite.owner.findings import Findings
from offsite.owner.methods.base import Method
from offsite.owner.profile import Profile


@dataclass(frozen=True)
class SRC(Method):
    """Keep every layer, and of its attention the largest components; feed-forward is untouched."""

    name: ClassVar[str] = "src"
    paper: ClassVar[str] = "ScaleOT, arXiv 2412.09812, Selective Rank Compression"
    planning: ClassVar[frozenset[str]] = frozenset({"beta"})
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)
    beta: float = 0.8
    """The share of each attention matrix's rank that stays."""
    norm: Literal["fisher", "plain"] = "fisher"
    """Which components are the largest: by what the loss feels of them, or by singular value, as published."""

    def __post_init__(self) -> None:
        check_beta(self.beta)

    @property
    def budgeted(self) -> bool:
        """Not: beta decides."""
        return False

    def learn(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, findings: Findings) -> None:
        """Factorise the attention of each layer."""
        factorise(model, split, findings, tokens if self.norm == "fisher" else None)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Every layer, blurred; beta alone says how much stays, whatever `keep` is."""
        return blurred(everything(profile.split, len(profile.sizes)), profile.findings, self.beta)


def check_beta(beta: float) -> None:
    """Refuse a share that is none."""
    if not 0 < beta <= 1:
        raise UserError(f"beta is the share of attention's rank that stays, above 0 and up to 1, not {beta:g}.")


def blurred(blueprint: Blueprint, findings: Mapping[str, Tensor], beta: float) -> Blueprint:
    """The blueprint with the best share `beta` of the ranks of attention where a layer stands as it is.

    `findings` are those of `factorise`.
    """
    if beta == 1:
        return blueprint
    factored = sorted(key.removesuffix(".up") for key in findings if key.endswith(".up"))

    def weights(layer: int) -> dict[str, Weight]:
        return {
            name: _truncated(findings[f"{layer}/{name}.up"], findings[f"{layer}/{name}.down"], beta)
            for home, _, name in (key.partition("/") for key in factored)
            if home == str(layer)
        }

    return tuple(
        place if place.harmonizer else replace(place, weights=weights(place.layer) | dict(place.weights))
        for place in blueprint
    )


def _truncated(up: Tensor, down: Tensor, share: float) -> Weight:
    rank = max(1, round(share * len(down)))
    return Weight.of(up[:, :rank], down[:rank])
