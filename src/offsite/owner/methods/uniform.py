"""Uniform layer drop, the emulator of Offsite-Tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from offsite.owner.blueprint import Blueprint, Place
from offsite.owner.methods.base import Method, layers_to_keep
from offsite.owner.profile import Profile


@dataclass(frozen=True)
class Uniform(Method):
    """Keep layers at equal distances, the first and the last of the middle among them."""

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "Offsite-Tuning, arXiv 2302.04870, section 3.2"

    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Keep k layers: the i-th is round(i (M-1) / (k-1)) of M; a single one is the midmost."""
        middle, count = profile.middle, layers_to_keep(profile, keep)
        if count == 1:
            return (Place(middle[len(middle) // 2]),)
        step = (len(middle) - 1) / (count - 1)
        return tuple(Place(middle[round(i * step)]) for i in range(count))
