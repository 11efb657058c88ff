"""Several methods in a chain: the first decides which layers stand, later ones what is done to those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from offsite.errors import UserError
from offsite.owner.blueprint import Blueprint, Place, raw
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.profile import Profile

Link = tuple[Method, Profile]
"""A method of a chain, and its profile of the model."""


def plan(links: Sequence[Link], keep: float) -> Blueprint:
    """Return the blueprint that stores the share `keep` of the middle.

    Methods whose knobs alone decide how much stays ignore `keep`, and do not change what others have changed.
    Each of the n others takes the n-th root of what is left to reach the share asked for, so that the last one
    reaches it. (What a first method saves in matrices comes on top: the whole then stores less than asked.)
    """
    check_keep(keep)
    blueprint: Blueprint | None = None
    for number, (method, profile) in enumerate(links):
        if blueprint is None:
            blueprint = method.plan(profile, _share(links, keep))
            continue
        fixed, free = _stored(blueprint, profile)
        left = (keep * sum(profile.sizes) - fixed) / free
        share = _share(links[number:], min(1.0, max(left, 1e-3)))
        then = method.plan(_narrowed(profile, blueprint), share)
        blueprint = overlay(blueprint, then, method.name, wins=method.budgeted)
    assert blueprint is not None, "a chain has a method"
    return blueprint


def overlay(first: Blueprint, then: Blueprint, name: str = "", *, wins: bool = True) -> Blueprint:
    """Return the places of `first`, with what `then` does to the layers that stand there.

    Where both change a linear, `then` does if it `wins`. Raises UserError where `then`, the plan of the method
    `name`, leaves such a layer out, and where both prune channels.
    """
    inner = {place.layer: place for place in raw(then)}

    def both(place: Place) -> Place:
        if place.harmonizer:
            return place
        if place.layer not in inner:
            raise UserError(f"The method {name!r} drops layers itself, so it has to stand first in a chain.")
        change = inner[place.layer]
        weights = {**place.weights, **change.weights} if wins else {**change.weights, **place.weights}
        if change.channels is None:
            return replace(place, weights=weights)
        if place.channels is not None:
            raise UserError(
                f"The method {name!r} prunes channels, and so does one before it; take one of them."
            )
        return replace(place, channels=change.channels, weights=weights)

    return tuple(map(both, first))


def _share(links: Sequence[Link], keep: float) -> float:
    """Return the share that the first of the methods is asked for."""
    budgeted = sum(method.budgeted for method, _ in links)
    return float(keep ** (1 / max(1, budgeted)))


def _stored(blueprint: Blueprint, profile: Profile) -> tuple[int, int]:
    """Count the parameters of harmonizers, which no later method changes, and of the layers that stand."""
    chains = [place.harmonizer.matrices for place in blueprint if place.harmonizer]
    fixed = sum(matrix.numel() for matrices in chains for matrix in matrices)
    return fixed, sum(profile.sizes[layer] for layer in {place.layer for place in raw(blueprint)})


def _narrowed(profile: Profile, blueprint: Blueprint) -> Profile:
    """Return the profile of a model in which only the layers that stand have parameters and scores."""
    layers = {place.layer for place in raw(blueprint)}
    sizes = tuple(size if layer in layers else 0 for layer, size in enumerate(profile.sizes))
    gone = {str(layer) for layer in profile.middle if layer not in layers}
    return replace(profile, sizes=sizes, tensors=_Without(profile.tensors, gone))


class _Without(Mapping[str, Tensor]):
    """Parts without some parts."""

    def __init__(self, tensors: Mapping[str, Tensor], gone: set[str]) -> None:
        self.tensors, self.gone = tensors, gone

    def __getitem__(self, key: str) -> Tensor:
        if key.partition("/")[0] in self.gone:
            raise KeyError(key)
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.tensors if key.partition("/")[0] not in self.gone)

    def __len__(self) -> int:
        return sum(1 for _ in self)
