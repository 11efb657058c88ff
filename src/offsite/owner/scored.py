"""What methods share that score ranks and channels by the curvature of the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.curvature import Curvature, curvature
from offsite.owner.factors import watched
from offsite.owner.methods.base import Granularity, Method
from offsite.owner.parts import Parts

FLOOR = 0.05
"""The share of each matrix's ranks and channels that stays whatever their score, as in GradOT's paper."""


@dataclass(frozen=True)
class Scored(Method):
    """A method whose `scores` of a layer follow from the curvature in some of its `linears`."""

    granularity: ClassVar[Granularity] = "components"
    plan_knobs: ClassVar[frozenset[str]] = frozenset({"lambda_attention", "lambda_channels"})
    calibration: ClassVar[tuple[int, int] | None] = (256, 64)  # as short as what adapters are tuned on
    lambda_attention: Annotated[float, "times the change of the loss"] = 0.0
    """Weight of the privacy term for ranks: the higher, the sooner those go whose removal raises the loss."""
    lambda_channels: Annotated[float, "times the change of the loss"] = 0.0
    """Weight of the privacy term for channels."""
    labels: Literal["text", "sampled"] = "text"
    """Whose next tokens make the Fisher information: the text's, or drawn from the model."""

    def measure(self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts) -> None:
        """Score the components of attention and the channels of each middle layer."""
        decoder, sampled = Decoder.of(model), 0 if self.labels == "sampled" else None
        linears, read = partial(self.linears, decoder), partial(curvature, sampled=sampled)
        for layer, seen in watched(model, split, parts, tokens, linears, read):
            parts.put(str(layer), self.scores(decoder, layer, seen))

    @abstractmethod
    def linears(self, decoder: Decoder, layer: int) -> list[str]:
        """Return the linears of a layer whose curvature the scores need."""

    @abstractmethod
    def scores(self, decoder: Decoder, layer: int, seen: Mapping[str, Curvature]) -> dict[str, Tensor]:
        """Return the records of a layer, from the curvature in its linears."""
