"""The digest of a method's code: the same for the same code, another for any other."""

from __future__ import annotations

import importlib
import sys

import pytest

from offsite.owner.methods import METHODS
from offsite.owner.methods.identity import identity
from offsite.owner.methods.uniform import Uniform

METHOD = """
from my_parts import order
from offsite.owner.methods.uniform import Uniform

class Mine(Uniform):
    def plan(self, profile, keep):
        return order(super().plan(profile, keep))
"""
PARTS = "def order(places):\n    return places[::{}]\n"


@pytest.fixture
def identity_of(tmp_path, monkeypatch):
    """The digest of a method in a file, written with the helper that it imports, then loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(method, parts):
        for name, text in (("my_method", method), ("my_parts", parts)):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return identity(importlib.import_module("my_method").Mine)

    yield of
    for name in ("my_method", "my_parts"):
        sys.modules.pop(name, None)


def test_each_method_has_its_own_and_always_the_same():
    found = {name: identity(kind) for name, kind in METHODS.items()}
    assert len(set(found.values())) == len(METHODS)
    assert found == {name: identity(kind) for name, kind in METHODS.items()}


def test_another_class_or_another_function_that_replaces_one_is_another_code(monkeypatch):
    before = identity(Uniform)
    real = Uniform.plan
    monkeypatch.setattr(Uniform, "plan", lambda *asked: real(*asked)[::-1])
    assert identity(Uniform) != before
    monkeypatch.undo()
    assert identity(Uniform) == before


def test_the_code_of_what_a_method_inherits_from_and_imports_is_part_of_it(identity_of, monkeypatch):
    before = identity_of(METHOD, PARTS.format(1))
    assert identity_of(METHOD, PARTS.format(1)) == before
    assert identity_of(METHOD, PARTS.format(-1)) != before
    monkeypatch.setattr(Uniform, "plan", lambda self, profile, keep: ())
    assert identity_of(METHOD, PARTS.format(1)) != before


def test_a_method_that_was_typed_in_is_known_by_what_it_compiles_to():
    def typed(rank):
        scope = {"__name__": "typed_in", "Uniform": Uniform}
        exec(f"class Mine(Uniform):\n    def plan(self, profile, keep): return {rank}", scope)
        return identity(scope["Mine"])

    assert typed(1) == typed(1) != typed(2)
