"""The methods. A new one is a file here and a line in METHODS.

The classes are imported when they are first asked for, so that their names cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING

from offsite.docstrings import document
from offsite.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Knobs, Profile
    from offsite.owner.records import TrainingCurves


class Registry(MutableMapping[str, type["Method"]]):
    """Method classes by name, each given itself or as `module:Class` of this folder."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._kinds: dict[str, str | type[Method]] = dict(places)

    def __getitem__(self, name: str) -> type[Method]:
        kind = self._kinds[name]
        if isinstance(kind, str):
            module, _, word = kind.partition(":")
            kind = self._kinds[name] = getattr(import_module(f"{__name__}.{module}"), word)
        document(kind)
        return kind

    def __setitem__(self, name: str, kind: type[Method]) -> None:
        self._kinds[name] = kind

    def __delitem__(self, name: str) -> None:
        del self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


METHODS: MutableMapping[str, type[Method]] = Registry(
    {
        "gradot": "gradot:GradOT",
        "gradot-paper": "gradot_paper:GradOTPaper",
        "scaleot": "scaleot:ScaleOT",
        "src": "src:SRC",
        "uniform": "uniform:Uniform",
        "crash": "crash:Crash",
        "svd": "svd:SVD",
        "svd-llm": "svd_llm:SVDLLM",
        "flap": "flap:FLAP",
        "shortgpt": "shortgpt:ShortGPT",
    }
)
DEFAULT = "gradot"
"""The method that is taken where none is named."""


def kind_named(name: str) -> type[Method]:
    """Return the class of the method of that name; a UserError where there is none."""
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; {did_you_mean(name, METHODS)}")
    return METHODS[name]


def method_named(name: str, knobs: Sequence[str] = (), before: Knobs | None = None) -> Method:
    """Return the method of that name; its `knobs`, set as in `share=false`, go over those of `before`."""
    from pydantic import TypeAdapter, ValidationError

    kind = kind_named(name)
    words = [*(f"{knob}={value}" for knob, value in (before or {}).items()), *knobs]
    values = dict(_knob(word, kind) for word in words)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        if isinstance(cause := wrong.get("ctx", {}).get("error"), UserError):  # the method's sentence
            raise cause from error
        raise UserError(f"The knob {wrong['loc'][0]}={wrong['input']} of {name}: {wrong['msg']}.") from error


def chain(
    words: Sequence[str], knobs: Sequence[str] = (), before: Mapping[str, Knobs] | None = None
) -> list[Method]:
    """Return the methods of those names; each of the `knobs` goes to all that have it.

    `before` holds knobs by the method's name, over which `knobs` go.
    """
    known = {name: {*_names(METHODS[name]), *METHODS[name].moved} for name in words if name in METHODS}
    for knob in knobs if len(words) > 1 else ():
        word, every = knob.partition("=")[0], sorted(set().union(*known.values()))
        if word not in every:
            raise UserError(
                f"None of the methods {', '.join(words)} has a knob {word!r}; {did_you_mean(word, every)}"
            )
    return [
        method_named(
            name,
            [k for k in knobs if len(words) == 1 or k.partition("=")[0] in known.get(name, ())],
            (before or {}).get(name),
        )
        for name in words
    ]


def seeded(name: str, seed: int) -> Knobs:
    """Return the knob `seed`, where the method of that name has one."""
    return {"seed": seed} if name in METHODS and "seed" in _names(METHODS[name]) else {}


def before(words: Sequence[str], seed: int, profiles: Sequence[Profile]) -> dict[str, Knobs]:
    """Return the knobs that methods start from: the seed, or those of their profiles."""
    return {word: seeded(word, seed) for word in words} | {each.method: each.knobs for each in profiles}


def training_of(profile: Profile) -> TrainingCurves | None:
    """Return how the training that made a profile went; None where there was none."""
    name = profile.method
    return method_named(name, (), profile.knobs).training(profile) if name in METHODS else None


def _knob(word: str, kind: type[Method]) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"A knob is set as name=value, not {word!r}.")
    if name in kind.moved:
        raise UserError(f"The method {kind.name} has no knob {name!r}: {kind.moved[name]}")
    known = _names(kind)
    if name not in known:
        way = did_you_mean(name, known) if known else "it has none."
        raise UserError(f"The method {kind.name} has no knob {name!r}; {way}")
    return name, value


def _names(kind: type[Method]) -> set[str]:
    return {field.name for field in fields(kind)}
