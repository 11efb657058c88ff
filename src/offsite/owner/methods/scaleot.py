"""ScaleOT: one training run, harmonizers for the layers that matter least, the rest blurred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, Place
from offsite.owner.factors import factorise
from offsite.owner.findings import Findings
from offsite.owner.harmonize import STATE, Harmonizing, check_text, harmonize
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.methods.src import blurred, check_beta
from offsite.owner.profile import Profile

_TRAINED = "harmonizers"  # the part of the findings
_BETA = 0.8  # the paper's
_CURVED = 128  # blocks of text that the Fisher norm is taken from


@dataclass(frozen=True)
class ScaleOT(Harmonizing, Method):
    """Replace the least important layers by harmonizers; Selective Rank Compression for the rest.

    One profile serves every alpha and beta.
    """

    name: ClassVar[str] = "scaleot"
    paper: ClassVar[str] = "ScaleOT, arXiv 2412.09812"
    planning: ClassVar[frozenset[str]] = frozenset({"alpha", "beta"})
    calibration: ClassVar[tuple[int, int] | None] = (2048, 128)
    alpha: float | None = None
    """The share of the middle's layers that harmonizers stand for; None: as many as `keep` asks for."""
    beta: float | None = None
    """The share of the rank of attention that stays in other layers; None: 0.8, or all where `keep` is 1."""
    norm: Literal["fisher", "plain"] = "fisher"
    """Which of its components are the largest, as in `src`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 <= self.alpha < 1:
            raise UserError(
                f"alpha is the share of layers that are replaced, from 0 and below 1, not {self.alpha:g}."
            )
        if self.beta is not None:
            check_beta(self.beta)

    @property
    def budgeted(self) -> bool:
        """Only where alpha does not decide."""
        return self.alpha is None

    def learn(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, findings: Findings) -> None:
        """Factorise attention, then train harmonizers and scores."""
        assert tokens is not None, "calibration asks for tokens"
        check_text(tokens, self)
        seen = tokens[:_CURVED] if self.norm == "fisher" else None
        factorise(model, split, findings, seen)
        if _TRAINED not in findings.parts:
            findings.put(_TRAINED, harmonize(model, split, tokens, self, findings))
        findings.drop(STATE)

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Harmonizers for the least important layers: the share alpha, or as many as `keep` asks for."""
        order = profile.findings[f"{_TRAINED}/scores"].argsort(stable=True).tolist()
        replaced = {profile.middle[i] for i in order[: self._count(profile, keep)]}

        def place(layer: int) -> Place:
            if layer not in replaced:
                return Place(layer)
            up, down = (profile.findings[f"{_TRAINED}/{layer}.{part}"] for part in ("up", "down"))
            return Place(layer, harmonizer=Weight((up, down)))

        usual = 1.0 if keep == 1 and self.alpha is None else _BETA
        beta = usual if self.beta is None else self.beta
        return blurred(tuple(map(place, profile.middle)), profile.findings, beta)

    def _count(self, profile: Profile, keep: float) -> int:
        """How many layers are replaced; one at the least stays."""
        layers = len(profile.middle)
        if self.alpha is not None:
            return min(layers - 1, round(self.alpha * layers))
        check_keep(keep)
        first = f"{_TRAINED}/{profile.middle[0]}"
        stand_in = sum(profile.findings[f"{first}.{part}"].numel() for part in ("up", "down"))
        saved = sum(profile.sizes) / layers - stand_in  # by each layer replaced
        return max(0, min(layers - 1, round((1 - keep) * sum(profile.sizes) / saved)))
