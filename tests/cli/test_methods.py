"""offsite methods, and help(): every method and every knob, with its meaning, default and unit."""

from __future__ import annotations

import io
import pydoc

import pytest

import offsite
from offsite.docstrings import field_docs, field_lines
from offsite.owner.methods import DEFAULT, METHODS
from tests.cli.conftest import command, refused


def test_it_lists_every_method_with_what_it_keeps_and_its_paper():
    shown = command("methods").out
    for name in METHODS:
        (line,) = (
            line for line in shown.splitlines() if line.startswith((f"{name}:", f"{name} (the default):"))
        )
        assert METHODS[name].paper in line
    assert f"{DEFAULT} (the default): " in shown


@pytest.mark.parametrize("name", METHODS)
def test_it_shows_every_knob_and_help_says_the_same(name):
    kind, shown = METHODS[name], command("methods", name).out
    said = command("methods", name, "--json").json
    assert [knob["name"] for knob in said["knobs"]] == [knob.name for knob in field_docs(kind)]
    output = io.StringIO()
    pydoc.Helper(output=output).help(kind)
    for line in field_lines(kind):
        assert line in shown
        assert line.strip() in output.getvalue()
    for knob in said["knobs"]:
        default = "not set" if knob["default"] is None else knob["default"]
        assert f"    {knob['name']} = {default} ({knob['unit']})" in shown


def test_an_unknown_one_is_answered_with_the_nearest(here):
    assert "There is no method 'gradto'; did you mean 'gradot'?" in refused(here, "methods", "gradto")


@pytest.mark.parametrize("name", sorted(name for name in offsite.__all__ if name[0].isupper()))
def test_help_of_a_public_dataclass_has_its_fields_docstrings(name):
    kind = getattr(offsite, name)
    if not hasattr(kind, "__dataclass_fields__"):
        pytest.skip("no dataclass")
    documented = [each for each in field_docs(kind) if each.meaning]
    assert all(each.meaning.split()[0] in kind.__doc__ for each in documented)
    assert kind.__doc__.count("Fields:") == bool(field_docs(kind))


def test_dir_lists_the_public_names_alone():
    assert [name for name in dir(offsite) if not name.startswith("__")] == sorted(offsite.__all__)
    assert all(getattr(offsite, name) is not None for name in offsite.__all__)
