"""The methods. A new one is a file here and a line in METHODS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from pydantic import TypeAdapter, ValidationError

from offsite.errors import UserError, did_you_mean
from offsite.owner.methods.base import Method
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {method.name: method for method in (Uniform, Crash)}


def method_named(name: str, knobs: Sequence[str] = ()) -> Method:
    """The method that the command line calls `name`, with its `knobs` set as in `share=false`."""
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; {did_you_mean(name, METHODS)}")
    kind = METHODS[name]
    known = {field.name for field in fields(kind)}
    values = dict(_knob(word, name, known) for word in knobs)
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
