"""What every method is: it profiles the model once, then plans an emulator for any budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.modes import evaluating
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint
from offsite.owner.methods.identity import identity
from offsite.owner.parts import Parts
from offsite.owner.profile import Knobs, Profile
from offsite.owner.records import TrainingCurves

Granularity = Literal["layers", "components", "knobs"]


@dataclass(frozen=True)
class Method(ABC):
    """A way to choose what stays in the emulator; it never touches the model.

    A subclass is a frozen dataclass with two verbs: `measure`, which reads the model once, and `plan`. Its
    docstring begins with what it keeps. Its fields are its knobs, besides `keep`, each with a docstring and a
    unit, as in `beta: Annotated[float, "share"] = 0.8`.
    """

    name: ClassVar[str]
    """Its name on the command line and in recipes."""
    paper: ClassVar[str]
    """Where it comes from."""
    granularity: ClassVar[Granularity] = "layers"
    """What a plan comes as near to `keep` as: whole layers, ranks and channels, or what its knobs ask for."""
    plan_knobs: ClassVar[frozenset[str]] = frozenset()
    """The knobs that `plan` alone uses: one profile serves, whatever they are."""
    calibration: ClassVar[tuple[int, int] | None] = None
    """How many blocks of public text, and of how many tokens, `measure` reads; None: it reads no text."""
    sweep: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The knobs, and their values, that `offsite frontier` varies where nobody says; none: it varies `keep`."""
    moved: ClassVar[Mapping[str, str]] = {}
    """What to say of knobs that the method had once: the way to what they did."""

    @property
    def budgeted(self) -> bool:
        """Whether `keep` decides how much stays, rather than the knobs."""
        return True

    @property
    def profile_knobs(self) -> list[str]:
        """The knobs that `measure` uses: a profile serves those alone that it was made with."""
        return [knob.name for knob in fields(self) if knob.name not in self.plan_knobs]

    @property
    def knobs(self) -> Knobs:
        """The values of the knobs by name, without those at None."""
        values = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def profile(
        self, model: PreTrainedModel, split: Split, tokens: Tensor | None = None, work: Path | None = None
    ) -> Profile:
        """Profile `model`, on `tokens` (blocks, length) where `calibration` asks for text.

        What is measured part by part is kept in the folder `work`, where it is given: interrupted and called
        again with the same, it goes on from there. The profile reads from `work` until it is saved elsewhere.
        """
        assert tokens is not None or self.calibration is None, "calibration asks for tokens"
        text = None if tokens is None else (tokens.shape[0], tokens.shape[1])
        bare = Profile.of(model, split, method=self.name, knobs=self.knobs, calibration=text)
        parts = Parts.resumed(work, bare.fingerprint(tokens, self.profile_knobs, identity(type(self))))
        with evaluating(model):
            self.measure(model, split, tokens, parts)
        return replace(bare, tensors=parts)

    def measure(  # noqa: B027 - some methods of dropping layers need to know nothing
        self, model: PreTrainedModel, split: Split, tokens: Tensor | None, parts: Parts
    ) -> None:
        """Put into `parts` what they lack: those that are there are of an interrupted run of the same."""

    def check(self, profile: Profile) -> None:
        """Refuse a profile that cannot be planned from, by the method or by knobs that it was not made for."""
        if profile.method != self.name:
            raise UserError(
                f"The profile is of the method {profile.method!r}, not of {self.name!r}; leave the method out, "
                f"or profile the model anew with {self.name}."
            )
        usual = {knob.name: knob.default for knob in fields(self)}  # of knobs that are newer than the profile
        for knob in self.profile_knobs:
            before, now = profile.knobs.get(knob, usual[knob]), getattr(self, knob)
            if before != now:
                raise UserError(
                    f"The profile was made with {knob}={before}, not {now}; leave that, or profile the model "
                    "anew."
                )

    @abstractmethod
    def plan(self, profile: Profile, keep: float) -> Blueprint:
        """Decide what an emulator is made of that stores the share `keep` of the middle's parameters."""

    def training(self, profile: Profile) -> TrainingCurves | None:
        """Return how the training went, for a page of the profile; None for methods that train nothing."""
        return None


def check_keep(keep: float) -> None:
    """Refuse a budget outside 0 to 1."""
    if not 0 < keep <= 1:
        raise UserError(f"keep is the share of the middle that stays, above 0 and up to 1, not {keep:g}.")


def layers_to_keep(profile: Profile, keep: float) -> int:
    """Return how many whole layers come nearest to the budget `keep`, at least one."""
    check_keep(keep)
    return max(1, round(keep * len(profile.middle)))
