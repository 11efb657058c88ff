"""What a method decides: for each place in the emulator's middle, which layer stands there.

A blueprint is data: it can be saved, printed, compared and mixed. It says what was dropped, so it stays with
the owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offsite.errors import UserError
from offsite.split import Split


@dataclass(frozen=True)
class Place:
    """One place in the emulator's middle. Places of the same layer share its weights, stored once."""

    layer: int
    """Which of the model's layers stands here, counted from the embeddings."""


Blueprint = tuple[Place, ...]


def everything(split: Split, layers: int) -> Blueprint:
    """The lossless emulator: every layer of the middle in its place."""
    return tuple(Place(layer) for layer in split.middle(layers))


def share(blueprint: Blueprint, sizes: Sequence[int]) -> float:
    """`keep` as it came out: parameters stored in the emulator's middle over those of the model's middle.

    `sizes` holds the parameters of each of the model's layers, by index; those outside the middle are 0.
    """
    return sum(sizes[layer] for layer in {place.layer for place in blueprint}) / sum(sizes)


def check(blueprint: Blueprint, split: Split, layers: int) -> None:
    """Refuse a blueprint that is not one for the middle of a stack of so many `layers`."""
    middle = split.middle(layers)
    strays = [place.layer for place in blueprint if place.layer not in middle]
    if strays or not blueprint:
        what = f"puts layer {strays[0]}" if strays else "puts nothing"
        raise UserError(
            f"The blueprint {what} in the middle, which is layers {middle.start} to {middle.stop - 1} here."
        )
