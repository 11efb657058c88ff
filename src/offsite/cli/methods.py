"""offsite methods."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.options import Json
from offsite.cli.shell import console, emit
from offsite.owner.methods import DEFAULT, METHODS

if TYPE_CHECKING:
    from offsite.owner.methods.base import Method

NAME = "methods"
HELP = """List the compression methods, or every knob of one method with its meaning, default and unit.

Example: `offsite methods scaleot`
"""

_NEAREST = {
    "layers": "An emulator comes as near to --keep as whole layers allow.",
    "components": "An emulator meets --keep by ranks and channels.",
    "knobs": "Its knobs decide how much is kept; --keep is not used.",
}


def command(
    name: Annotated[str | None, typer.Argument(help="A method [default: all of them].")] = None,
    json: Json = False,
) -> None:
    """Print what the methods' classes document."""
    from offsite.docstrings import field_docs
    from offsite.owner.methods import kind_named

    if name is None:
        methods = [_summary(METHODS[each]) for each in METHODS]
        emit({"methods": methods, "default": DEFAULT}, json, lambda: _list(methods))
        return
    kind = kind_named(name)
    data = _summary(kind) | {"knobs": [asdict(knob) for knob in field_docs(kind)]}
    emit(data, json, lambda: _show(kind))


def _summary(kind: type[Method]) -> dict[str, object]:
    from offsite.docstrings import about

    return {
        "method": kind.name,
        "keeps": about(kind).partition("\n")[0],
        "paper": kind.paper,
        "granularity": kind.granularity,
        "calibration": kind.calibration,
    }


def _list(methods: list[dict[str, object]]) -> None:
    say = console().print
    for each in methods:
        usual = " (the default)" if each["method"] == DEFAULT else ""
        say(f"{each['method']}{usual}: {each['keeps']} [{each['paper']}]")
    say("`offsite methods NAME` shows the knobs of one; `--set NAME=VALUE` sets a knob.")


def _show(kind: type[Method]) -> None:
    from offsite.docstrings import about, field_lines

    say, text = console().print, kind.calibration
    say(f"{kind.name} [{kind.paper}]", "", about(kind), "", sep="\n")
    reads = f"{text[0]} blocks of {text[1]} tokens of public text" if text else "no text"
    say(f"Its profile reads {reads}. {_NEAREST[kind.granularity]}")
    say("", "Knobs:", *(field_lines(kind) or ["    none"]), sep="\n")
