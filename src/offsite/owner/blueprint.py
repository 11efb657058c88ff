"""What a method decides: for each place in the emulator's middle, which layer stands there, and how much of it.

A blueprint is data: it can be printed, drawn and mixed. It says what was dropped, so it stays with the owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split


@dataclass(frozen=True)
class Place:
    """One place in the emulator's middle. Places that share a layer's weights unchanged store them once."""

    layer: int
    """Which of the model's layers stands here, counted from the embeddings."""
    channels: tuple[int, ...] | None = None
    """Which channels of its feed-forward stay, ascending; None: all."""
    weights: Mapping[str, Weight] = field(default_factory=dict)
    """What stands for the weights of its linears, by their names in the layer, `channels` already applied."""
    harmonizer: Weight | None = None
    """The up and down of a harmonizer that stands for the whole layer, which then is not stored at all."""

    def describe(self) -> dict[str, object]:
        """Describe this place in numbers, for the owner's receipt."""
        ranks = {name: len(w.matrices[1]) for name, w in self.weights.items() if len(w.matrices) == 2}
        facts: dict[str, object] = {"layer": self.layer}
        if self.harmonizer:
            facts["harmonizer"] = len(self.harmonizer.matrices[1])
        if ranks:
            facts["ranks"] = ranks
        if self.channels is not None:
            facts["channels"] = list(self.channels)
        return facts


Blueprint = tuple[Place, ...]


def everything(split: Split, layers: int) -> Blueprint:
    """Return the lossless blueprint: every layer of the middle in its place."""
    return tuple(Place(layer) for layer in split.middle(layers))


def raw(blueprint: Blueprint) -> Blueprint:
    """Return the places where a layer stands, not a harmonizer."""
    return tuple(place for place in blueprint if not place.harmonizer)


def check(blueprint: Blueprint, split: Split, layers: int) -> None:
    """Refuse a blueprint that is not one for the middle of a stack of so many `layers`."""
    middle = split.middle(layers)
    strays = [place.layer for place in blueprint if place.layer not in middle]
    if strays or not raw(blueprint):
        what = f"puts layer {strays[0]}" if strays else "puts no layer"
        raise UserError(
            f"The blueprint {what} in the middle, which is layers {middle.start} to {middle.stop - 1} here."
        )
