"""What a method learns about a model, once: saved, private to the owner, good for every budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from offsite.decoder import Decoder
from offsite.split import Split


@dataclass(frozen=True)
class Profile:
    """The shape of the model's stack, and the method's own findings."""

    split: Split
    sizes: tuple[int, ...]
    """Parameters of each layer, by index; 0 outside the middle."""
    findings: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, split: Split, findings: Mapping[str, Tensor] | None = None) -> Profile:
        """The profile of `model` with a method's `findings`; a UserError if it cannot be cut so."""
        decoder = Decoder.of(model)
        middle = split.middle(len(decoder))
        sizes = (
            sum(tensor.numel() for tensor in decoder.tensors(i).values()) if i in middle else 0
            for i in range(len(decoder))
        )
        return cls(split, tuple(sizes), findings or {})

    @property
    def middle(self) -> range:
        """The indices of the middle layers."""
        return self.split.middle(len(self.sizes))
