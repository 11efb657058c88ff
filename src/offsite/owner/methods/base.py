"""What every method is: it learns about the model once, then plans for any budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.owner.blueprint import Blueprint
from offsite.owner.profile import Profile
from offsite.split import Split


@dataclass(frozen=True)
class Method(ABC):
    """A way to choose what stays in the emulator; it never touches the model.

    Subclasses are frozen dataclasses: their fields are the method's own knobs, besides `keep`.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    paper: ClassVar[str]
    """Where it comes from."""
    calibration: ClassVar[tuple[int, int] | None] = None
    """How many blocks of public text, and of how many tokens, `profile` reads; None: it reads no text."""

    def profile(self, model: PreTrainedModel, split: Split, tokens: Tensor | None = None) -> Profile:
        """Learn about `model`, from `tokens` (blocks, length) where `calibration` asks for them."""
        return Profile.of(model, split)

    @abstractmethod
    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """What an emulator is made of that stores the share `keep` of the middle's parameters."""


def check_keep(keep: float) -> None:
    """Refuse a budget that is none."""
    if not 0 < keep <= 1:
        raise UserError(f"keep is the share of the middle that stays, above 0 and up to 1, not {keep:g}.")


def layers_to_keep(profile: Profile, keep: float) -> int:
    """How many whole layers come nearest to the budget `keep`, at least one."""
    check_keep(keep)
    return max(1, round(keep * len(profile.middle)))
