"""What a frontier varies: settings of one method, or of a chain, for which one profile serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product

from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.methods import METHODS, chain
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.profile import Knobs

Settings = dict[str, bool | int | float | str]
"""One point of the grid: `keep`, `split` ("2+2": bottom and top) and knobs, each where it is varied."""

KEEPS = (0.5, 0.6, 0.7, 0.8)
"""The budgets that are tried where nobody says others."""


@dataclass(frozen=True)
class Grid:
    """The methods in their order, what is set of them, and what is varied."""

    words: Sequence[str]
    """The methods' names."""
    fixed: Sequence[str] = ()
    """Knobs that are the same everywhere, as `name=value`."""
    varied: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values by the knob's name."""
    keeps: Sequence[float] = ()
    """Empty: KEEPS where `keep` has a say."""
    splits: Sequence[Split] = ()
    """Empty: that of the profile."""
    before: Mapping[str, Knobs] = field(default_factory=dict)
    """Knobs by the method, over which the others go: those that a profile was made with."""

    def settings(self) -> list[Settings]:
        """Each point once, in the order of the grid; a UserError for what no method can be set to.

        Where nothing is asked for, a single method's `sweep` is varied, or else `keep`.
        """
        varied = self.varied
        alone = len(self.words) == 1 and not self.keeps and self.words[0] in METHODS
        usual = METHODS[self.words[0]].sweep if alone else {}
        settled = {word.partition("=")[0] for word in self.fixed}
        varied = {knob: values for knob, values in usual.items() if knob not in settled} | dict(varied)
        axes = [[f"{knob}={value}" for value in values] for knob, values in varied.items()]
        points: list[Settings] = []
        for words in product(*axes):
            methods = self.methods(words)
            cuts: Sequence[Split | None] = self.splits or [None]
            for keep, split in product(self._keeps(methods), cuts):
                point: Settings = {} if keep is None else {"keep": keep}
                point |= {} if split is None else {"split": f"{split.bottom}+{split.top}"}
                points.append(point | {knob: _value(methods, knob) for knob in varied})
        return [point for place, point in enumerate(points) if point not in points[:place]]

    def methods(self, words: Sequence[str] = ()) -> list[Method]:
        """The methods with the knobs `words`, each `name=value`, over those that are fixed."""
        return chain(self.words, [*self.fixed, *words], self.before)

    def of(self, point: Settings) -> list[Method]:
        """The methods as they are at a point of the grid."""
        return self.methods([f"{name}={value}" for name, value in knobs(point).items()])

    def _keeps(self, methods: Sequence[Method]) -> Sequence[float | None]:
        if any(method.budgeted for method in methods):
            for keep in self.keeps:
                check_keep(keep)
            return self.keeps or KEEPS
        if self.keeps:
            raise UserError(
                f"Of {'+'.join(self.words)} the knobs alone say how much stays, whatever keep is; leave "
                "--keeps out, or those knobs."
            )
        return [None]


def knobs(point: Settings) -> Settings:
    """A point without `keep` and `split`."""
    return {name: value for name, value in point.items() if name not in ("keep", "split")}


def split_of(point: Settings, usual: Split) -> Split:
    """Where the stack is cut at a point."""
    return parse_split(str(point["split"])) if "split" in point else usual


def parse_split(word: str) -> Split:
    """The split that is written as `2+2`: so many bottom, so many top layers."""
    bottom, plus, top = word.partition("+")
    if not (plus and bottom.strip().isdecimal() and top.strip().isdecimal()):
        raise UserError(f"A split is written as 2+2, bottom and top adapter layers, not {word!r}.")
    return Split(int(bottom), int(top))


def parse_keeps(words: Sequence[str]) -> list[float]:
    """The budgets that are so written."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"keep is a share as 0.7, which {', '.join(words)!r} is not.") from error


def in_words(point: Settings) -> str:
    """A point as people read it: `keep 0.7, alpha 0.25`."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items()
    )


def _value(methods: Sequence[Method], knob: str) -> bool | int | float | str:
    """The knob as the first method that has it read it."""
    value = next(
        getattr(method, knob)
        for method in methods
        if knob in {each.name for each in fields(METHODS[method.name])}
    )
    assert isinstance(value, bool | int | float | str), f"{knob} was set"
    return value
