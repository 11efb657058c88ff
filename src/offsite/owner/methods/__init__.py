"""The methods. A new one is a file here and a line in METHODS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from pydantic import TypeAdapter, ValidationError

from offsite.errors import UserError, did_you_mean
from offsite.owner.methods.base import Method
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.gradot import GradOT
from offsite.owner.methods.scaleot import ScaleOT
from offsite.owner.methods.src import SRC
from offsite.owner.methods.svd import SVD
from offsite.owner.methods.uniform import Uniform
from offsite.owner.profile import Knobs, Profile

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (GradOT, ScaleOT, SRC, Uniform, Crash, SVD)
}
DEFAULT = "gradot"
"""The method that is taken where none is named."""


def method_named(
    name: str, knobs: Sequence[str] = (), before: Mapping[str, bool | int | float | str] | None = None
) -> Method:
    """The method that the command line calls `name`; its `knobs`, set as in `share=false`, go over `before`."""
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; {did_you_mean(name, METHODS)}")
    kind = METHODS[name]
    known = {field.name for field in fields(kind)}
    words = [*(f"{knob}={value}" for knob, value in (before or {}).items()), *knobs]
    values = dict(_knob(word, name, known) for word in words)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        if isinstance(said := wrong.get("ctx", {}).get("error"), UserError):  # the method's own sentence
            raise said from error
        raise UserError(f"The knob {wrong['loc'][0]}={wrong['input']} of {name}: {wrong['msg']}.") from error


def chain(
    words: Sequence[str], knobs: Sequence[str] = (), before: Mapping[str, Knobs] | None = None
) -> list[Method]:
    """The methods of those names, one after the other; each knob goes to all that know it.

    `before` holds knobs by the method's name, over which `knobs` go.
    """
    known = {name: {field.name for field in fields(METHODS[name])} for name in words if name in METHODS}
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
    """The knob `seed`, where the method of that name has one."""
    has = name in METHODS and "seed" in {field.name for field in fields(METHODS[name])}
    return {"seed": seed} if has else {}


def before(words: Sequence[str], seed: int, profiles: Sequence[Profile]) -> dict[str, Knobs]:
    """The knobs that methods start from: the seed, or those of their profiles."""
    return {word: seeded(word, seed) for word in words} | {each.method: each.knobs for each in profiles}


def _knob(word: str, method: str, known: set[str]) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"A knob is set as name=value, not {word!r}.")
    if name not in known:
        way = did_you_mean(name, known) if known else "it has none."
        raise UserError(f"The method {method} has no knob {name!r}; {way}")
    return name, value
