"""A digest of the code that a method computes with, so that a cache forgets what other code computed."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_ROOMS = ("offsite.owner", "offsite.model")  # what decides numbers; the rest reads, writes and reports


def identity(kind: type) -> str:
    """Return a digest of a method's source: its class, what that inherits from, and the modules they use.

    Followed are imports of `offsite.owner`, `offsite.model` and files in the method's folder. Comments
    count too.
    """
    classes = [each for each in kind.__mro__ if each.__module__ not in ("builtins", "abc")]
    functions = [one for each in classes for one in vars(each).values() if inspect.isroutine(one)]
    modules: dict[str, ModuleType] = {}
    for name in {each.__module__ for each in classes}:
        _follow(name, _folder(name), modules)
    found = [_source(each) for each in (*classes, *functions)]
    found += [_source(modules[name]) for name in sorted(modules)]
    return hashlib.sha256("\0".join(found).encode()).hexdigest()


def _follow(name: str, folder: str | None, found: dict[str, ModuleType]) -> None:
    """Collect a module and all that its globals come from: of the two rooms, and of files in `folder`."""
    if name in found or name not in sys.modules:
        return
    found[name] = sys.modules[name]
    for used in set(_origins(found[name])):
        if used.startswith(_ROOMS) or (folder is not None and _folder(used) == folder):
            _follow(used, folder, found)


def _folder(name: str) -> str | None:
    """Return the folder that a module was loaded from; None where it has no file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return str(Path(file).parent) if file else None


def _origins(module: ModuleType) -> Iterator[str]:
    for value in list(vars(module).values()):
        origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(origin, str):
            yield origin


def _source(thing: Any) -> str:
    """Return the source of a class, function or module; without a file, what a function compiles to."""
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        code = getattr(thing, "__code__", None)
        return repr(_compiled(code)) if code else getattr(thing, "__qualname__", "")


def _compiled(code: CodeType) -> tuple[object, ...]:
    constants = (_compiled(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return (code.co_code, code.co_names, *constants)
