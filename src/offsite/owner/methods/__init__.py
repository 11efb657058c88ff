"""The methods. A new one is a file here and a line in METHODS."""

from __future__ import annotations

from offsite.errors import UserError, did_you_mean
from offsite.owner.methods.base import Method
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {method.name: method for method in (Uniform, Crash)}


def method_named(name: str) -> Method:
    """The method that the command line calls `name`, with its default knobs."""
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; {did_you_mean(name, METHODS)}")
    return METHODS[name]()
