"""The methods. A new one is a file here and a line in METHODS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from pydantic import TypeAdapter, ValidationError

from offsite.errors import UserError, did_you_mean
from offsite.owner.methods.base import Method
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.gradot import GradOT
from offsite.owner.methods.svd import SVD
from offsite.owner.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {method.name: method for method in (GradOT, Uniform, Crash, SVD)}
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
        raise UserError(f"The knob {wrong['loc'][0]}={wrong['input']} of {name}: {wrong['msg']}.") from error


def _knob(word: str, method: str, known: set[str]) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"A knob is set as name=value, not {word!r}.")
    if name not in known:
        way = did_you_mean(name, known) if known else "it has none."
        raise UserError(f"The method {method} has no knob {name!r}; {way}")
    return name, value
