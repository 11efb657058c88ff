"""Docstrings of dataclass fields, which Python drops: for `help()` and for `offsite methods`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass

_HEADING = "Fields:"


@dataclass(frozen=True)
class FieldDoc:
    """What a field means."""

    name: str
    meaning: str
    """Its docstring on one line; empty where it has none."""
    type: str
    """As it is written, without the unit."""
    default: object
    """None where it has none, or where that is the default."""
    required: bool
    unit: str
    """The text in `Annotated[type, "text"]`, or the values of a Literal; empty where there is neither."""


def field_docs(kind: type) -> list[FieldDoc]:
    """Return the fields of a dataclass in their order, with docstrings of bases where it has none."""
    written: dict[str, tuple[str, str, str]] = {}
    for each in reversed(kind.__mro__):
        written |= _written(each)
    found = []
    for field in fields(kind):
        meaning, type_, unit = written.get(field.name, ("", str(field.type), ""))
        required = field.default is MISSING and field.default_factory is MISSING
        default = None if field.default is MISSING else field.default
        found.append(FieldDoc(field.name, meaning, type_, default, required, unit))
    return found


def document(kind: type) -> None:
    """Put the fields of a dataclass into its docstring, once, so that `help()` shows them."""
    text = vars(kind).get("__doc__") or ""
    if not is_dataclass(kind) or f"\n{_HEADING}\n" in text or not fields(kind):
        return
    lines = [line for each in field_docs(kind) for line in _lines(each)]
    kind.__doc__ = "\n".join([inspect.cleandoc(text), "", _HEADING, *lines, ""])


def _lines(each: FieldDoc) -> list[str]:
    default = "" if each.required else f" = {each.default!r}"
    unit = f" ({each.unit})" if each.unit else ""
    meaning = textwrap.wrap(each.meaning, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return [f"    {each.name}: {each.type}{default}{unit}", *meaning]


def _written(kind: type) -> dict[str, tuple[str, str, str]]:
    """Meaning, type and unit of the fields that are written in the body of a class; none without its source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = getattr(tree.body[0], "body", [])
    found = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = after.value if isinstance(after, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
            found[statement.target.id] = (" ".join(text.split()), *_type(statement.annotation))
    return found


def _type(annotation: ast.expr) -> tuple[str, str]:
    """The type and the unit of an annotation."""
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.slice, ast.Tuple):
        return ast.unparse(annotation), ""
    name, among = ast.unparse(annotation.value), annotation.slice.elts
    if name == "Annotated" and isinstance(among[1], ast.Constant):
        return ast.unparse(among[0]), str(among[1].value)
    if name == "Literal":
        return "str", " or ".join(str(each.value) for each in among if isinstance(each, ast.Constant))
    return ast.unparse(annotation), ""
