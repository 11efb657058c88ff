"""Where a decoder stack is cut: the adapter at both ends, the middle between."""

from __future__ import annotations

from dataclasses import dataclass

from offsite.errors import UserError


@dataclass(frozen=True)
class Split:
    """How many layers at each end are the adapter.

    The rest between them is the middle, which an emulator stands for. Two at each end is the papers'
    default (arXiv 2302.04870).
    """

    bottom: int = 2
    """Adapter layers nearest the embeddings."""
    top: int = 2
    """Adapter layers nearest the head."""

    def __post_init__(self) -> None:
        if self.bottom < 1 or self.top < 1:
            raise UserError(
                f"A split of {self.bottom} bottom and {self.top} top layers leaves the adapter without an end; "
                "give each at least one layer."
            )

    def middle(self, layers: int) -> range:
        """The indices of the middle of a stack of so many `layers`; at least one, or a UserError."""
        if layers <= self.bottom + self.top:
            raise UserError(
                f"A model of {layers} layers has no middle between {self.bottom} bottom and {self.top} top "
                "adapter layers; take fewer of them."
            )
        return range(self.bottom, layers - self.top)

    def adapter(self, layers: int) -> dict[str, int]:
        """The adapter's places by their names from either end, as `{"bottom.0": 0, ..., "top.0": 28, ...}`."""
        middle = self.middle(layers)
        bottom = {f"bottom.{i}": i for i in range(self.bottom)}
        return bottom | {f"top.{i}": middle.stop + i for i in range(self.top)}
