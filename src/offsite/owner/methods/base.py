"""What every method is: it learns about the model once, then plans for any budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.modes import evaluating
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.methods.identity import identity
from offsite.owner.profile import Findings, Knobs, Profile


@dataclass(frozen=True)
class Method(ABC):
    """A way to choose what stays in the emulator; it never touches the model.

    Subclasses are frozen dataclasses: their fields are the method's own knobs, besides `keep`.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    paper: ClassVar[str]
    """Where it comes from."""
    planning: ClassVar[frozenset[str]] = frozenset()
    """The knobs that only `plan` heeds: one profile serves, whatever they are."""
    calibration: ClassVar[tuple[int, int] | None] = None
    """How many blocks of public text, and of how many tokens, `profile` reads; None: it reads no text."""

    @property
    def budgeted(self) -> bool:
        """Whether `keep` decides how much stays, rather than the method's own knobs."""
        return True

    @property
    def learnt_with(self) -> list[str]:
        """The knobs that `learn` may hang on."""
        return [knob.name for knob in fields(self) if knob.name not in self.planning]

    @property
    def knobs(self) -> Knobs:
        """The knobs by name, as they are set; those at None are not."""
        values = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def profile(
        self, model: PreTrainedModel, split: Split, tokens: Tensor | None = None, work: Path | None = None
    ) -> Profile:
        """Learn about `model`, from `tokens` (blocks, length) where `calibration` asks for them.

        What is learnt part by part is kept in the folder `work`, where it is given: interrupted and called
        again with the same, it goes on from there. The profile reads from `work` until it is saved elsewhere.
        """
        assert tokens is not None or self.calibration is None, "calibration asks for tokens"
        text = None if tokens is None else (tokens.shape[0], tokens.shape[1])
        bare = Profile.of(model, split, method=self.name, knobs=self.knobs, calibration=text)
        code = identity(type(self))
        findings = Findings.resumed(work, bare.fingerprint(tokens, self.learnt_with, code))
        with evaluating(model):
            self.learn(model, split, tokens, findings)
        return replace(bare, findings=findings)

    def learn(  # noqa: B027 - most methods of dropping layers learn nothing
        self, model: PreTrainedModel, split: Split, tokens: Tensor | None, findings: Findings
    ) -> None:
        """Put into `findings` what it lacks; the `parts` that it has are of an interrupted run of the same."""

    def check(self, profile: Profile) -> None:
        """Refuse a profile that cannot be planned from, by the method or by knobs that it was not made for."""
        if profile.method != self.name:
            raise UserError(
                f"The profile is of the method {profile.method!r}, not of {self.name!r}; leave the method out, "
                f"or profile the model anew with {self.name}."
            )
        for knob in self.learnt_with:
            before, now = profile.knobs.get(knob), getattr(self, knob)
            if before != now:
                raise UserError(
                    f"The profile was made with {knob}={before}, not {now}; leave that, or profile the model "
                    "anew."
                )

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
