"""ScaleOT: harmonizers for the layers that matter least, by one training; attention of the rest truncated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, Place
from offsite.owner.factors import factorise
from offsite.owner.harmonize import STATE, TRAINED, Harmonizing, check_text, harmonize
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.methods.src import check_beta, truncated
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.records import Factors, TrainingCurves

_BETA = 0.8  # the paper's
_CURVED = 128  # blocks of text that the Fisher norm is taken from


@dataclass(frozen=True)
class ScaleOT(Harmonizing, Method):
    """Replace the least important layers by harmonizers, and truncate the attention of the others.

    One profile serves every alpha and beta.
    """

    name: ClassVar[str] = "scaleot"
    paper: ClassVar[str] = "ScaleOT, arXiv 2412.09812"
    plan_knobs: ClassVar[frozenset[str]] = frozenset({"alpha", "beta", "within"})
    calibration: ClassVar[tuple[int, int] | None] = (2048, 128)
    sweep: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "alpha": ("0.25", "0.375", "0.5"),
        "beta": ("0.6", "0.8", "1"),
    }
    alpha: Annotated[float | None, "share, from 0 below 1"] = None
    """The share of the middle's layers that harmonizers replace; not set: as many as `keep` asks for."""
    beta: Annotated[float | None, "share, above 0 up to 1"] = None
    """The share of the rank of attention that stays in other layers; not set: 0.8, or all where `keep` is 1."""
    within: Annotated[int, "layers"] = 0
    """Size of the groups of neighbours in each of which the least important layers are replaced, the same share
    of each; 0: the whole stack is one group."""
    norm: Literal["fisher", "plain"] = "fisher"
    """Which components are the largest: by their effect on the loss, or, as published, by singular value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 <= self.alpha < 1:
            raise UserError(
                f"alpha is the share of layers that are replaced, from 0 and below 1, not {self.alpha:g}."
            )
        if self.beta is not None:
            check_beta(self.beta)
        if self.within < 0:
            raise UserError(f"within is a number of layers, or 0 for the whole stack, not {self.within}.")

    @property
    def budgeted(self) -> bool:
        """True unless alpha decides."""
        return self.alpha is None

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Factorise attention, then train harmonizers and scores."""
        assert tokens is not None, "calibration asks for tokens"
        check_text(tokens, self)
        seen = tokens[:_CURVED] if self.norm == "fisher" else None
        factorise(model, split, parts, seen)
        if TRAINED not in parts.names:
            parts.put(TRAINED, harmonize(model, split, tokens, self, parts))
        parts.drop(STATE)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Harmonizers for the least important layers: the share alpha, or as many as `keep` asks for."""
        least = least_within(profile.tensors[f"{TRAINED}/scores"], self._count(profile, keep), self.within)
        replaced = {profile.middle[i] for i in least}

        def place(layer: int) -> Place:
            if layer not in replaced:
                return Place(layer)
            factors = Factors.read(profile.tensors, TRAINED, str(layer))
            return Place(layer, harmonizer=Weight((factors.up, factors.down)))

        usual = 1.0 if keep == 1 and self.alpha is None else _BETA
        beta = usual if self.beta is None else self.beta
        return truncated(tuple(map(place, profile.middle)), profile.tensors, beta)

    def training(self, profile: Profile) -> TrainingCurves | None:
        """Return how the training of harmonizers and scores went."""
        there = (TRAINED, "") in TrainingCurves.places(profile.tensors)
        return TrainingCurves.read(profile.tensors, TRAINED) if there else None

    def _count(self, profile: Profile, keep: float) -> int:
        """Return how many layers are replaced; at least one stays."""
        layers = len(profile.middle)
        if self.alpha is not None:
            return min(layers - 1, round(self.alpha * layers))
        check_keep(keep)
        first = Factors.read(profile.tensors, TRAINED, str(profile.middle[0]))
        stand_in = first.up.numel() + first.down.numel()
        saved = sum(profile.sizes) / layers - stand_in  # by each layer replaced
        return max(0, min(layers - 1, round((1 - keep) * sum(profile.sizes) / saved)))


def least_within(scores: Tensor, count: int, size: int) -> list[int]:
    """Return where the `count` least scores are, the same share of each group of `size` neighbours.

    A size of 0 makes one group of all.
    """
    layers, found = len(scores), list[int]()
    for start in range(0, layers, size or layers):
        group = scores[start : start + (size or layers)]
        share = count * (start + len(group)) // layers - count * start // layers
        found += [start + i for i in group.argsort(stable=True)[:share].tolist()]
    return found
