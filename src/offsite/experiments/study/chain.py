"""What a recipe names as one method: a method, several one after the other, their emulator distilled or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from offsite.errors import UserError
from offsite.owner.methods import METHODS, method_named
from offsite.owner.methods.base import Method


@dataclass(frozen=True)
class Chain:
    """The methods of one row of the table."""

    word: str
    """As it stands in the table: `gradot`, `crash:share=false`, `scaleot:alpha=0.25+gradot`, `uniform~150`."""
    methods: tuple[Method, ...]
    distill: int
    """Steps of distillation; 0: none."""

    @classmethod
    def of(cls, word: str) -> Chain:
        """Read a word; a UserError for a method or a knob that is not known."""
        chain, tilde, steps = word.partition("~")
        if tilde and not (steps.isdecimal() and int(steps) > 0):
            raise UserError(f"{word!r} asks to distill for {steps!r} steps; give a number, as in uniform~150.")
        return cls(word, tuple(map(_named, chain.split("+"))), int(steps or 0))

    @property
    def budgeted(self) -> bool:
        """Whether `keep` has a say; the others are of one size, and run once."""
        return any(method.budgeted for method in self.methods)

    @property
    def name(self) -> str:
        """Of the emulator: the methods without their knobs."""
        return "+".join(method.name for method in self.methods)

    @property
    def reads(self) -> bool:
        """Whether it reads a public text."""
        return self.distill > 0 or any(method.calibration for method in self.methods)

    def seeded(self, seed: int) -> tuple[Method, ...]:
        """The methods with the run's seed, where they train and their word says no other."""
        words = self.word.partition("~")[0].split("+")
        return tuple(
            replace(method, **{"seed": seed}) if "seed" in method.knobs and "seed=" not in word else method
            for word, method in zip(words, self.methods, strict=True)
        )


def word_of(asked: object) -> str:
    """The word for a method in a recipe, where it may also be a mapping, {method: scaleot, alpha: 0.25}."""
    if isinstance(asked, str):
        return asked
    if not isinstance(asked, Mapping) or not isinstance(asked.get("method"), str):
        raise UserError(f"{str(asked)!r:.60} is no method; write gradot, or {{method: scaleot, alpha: 0.25}}.")
    knobs = {str(name): value for name, value in asked.items() if name not in ("method", "distill")}
    names = asked["method"].split("+")
    words = [_with(name, _known(name, knobs, alone=len(names) == 1)) for name in names]
    unknown = set(knobs).difference(*(_known(name, knobs, alone=False) for name in names))
    if unknown and len(names) > 1:
        raise UserError(f"None of the methods {asked['method']} has a knob {min(unknown)!r}; leave it out.")
    return "+".join(words) + (f"~{asked['distill']}" if asked.get("distill") else "")


def _known(name: str, knobs: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """Of the knobs those that the method has; all of them where it stands `alone`, to be refused by it."""
    kind = METHODS.get(name)
    has = {*(field.name for field in fields(kind)), *kind.moved} if kind else set()
    return {knob: value for knob, value in knobs.items() if alone or knob in has}


def _with(name: str, knobs: Mapping[str, Any]) -> str:
    listed = ",".join(
        f"{knob}={str(value).lower() if isinstance(value, bool) else value}" for knob, value in knobs.items()
    )
    return f"{name}:{listed}" if listed else name


def _named(word: str) -> Method:
    name, _, knobs = word.partition(":")
    return method_named(name, [knob for knob in knobs.split(",") if knob])
