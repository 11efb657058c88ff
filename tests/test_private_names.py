"""Private names of other libraries: each that is used stands here with the reason for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import offsite

SOURCE = Path(offsite.__file__).parent
ALLOWED = {
    ("bundles/emulator.py", "_keep_in_fp32_modules"): "no public name tells which weights may be float32",
    ("bundles/emulator.py", "_keep_in_fp32_modules_strict"): "the same, for bfloat16",
    ("model/loading.py", "_attn_implementation"): "a config has a public setter at most, on the built model",
    ("model/loading.py", "_experts_implementation"): "the same, for experts",
    ("model/precision.py", "_attn_implementation"): "set_attn_implementation is public, what was set is not",
    ("untrusted/fork.py", "_exit"): "Python's documented way to end a forked process",
}
DOCUMENTED = {"_asdict", "_replace"}  # of named tuples


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def names(tree: ast.Module) -> Iterator[str]:
    """The private names that a file takes from something other than `self` or `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name):
                yield from filter(private, [name])
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(str(name)), *_]
            ):
                yield from filter(private, [name])
            case ast.ImportFrom(module=module, names=members):
                parts = [*(module or "").split("."), *(member.name for member in members)]
                yield from filter(private, parts)
            case ast.Import(names=members):
                yield from filter(private, (part for member in members for part in member.name.split(".")))


def defined(tree: ast.Module) -> set[str]:
    """What a file defines itself: functions, methods and annotated or assigned attributes."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def used(source: str) -> set[str]:
    tree = ast.parse(source)
    return set(names(tree)) - defined(tree)


def test_private_names_of_others_are_used_where_there_is_no_public_one_alone():
    found = {(str(p.relative_to(SOURCE)), name) for p in SOURCE.rglob("*.py") for name in used(p.read_text())}
    assert found == set(ALLOWED)


def test_every_way_to_reach_a_private_name_is_seen():
    source = (
        "from a._b import c\nimport d._e\nf._g\ngetattr(h, '_i')\nj()._k = 1\nl._asdict()\nself._m\nn.__name__"
    )
    assert used(source) == {"_b", "_e", "_g", "_i", "_k"}
