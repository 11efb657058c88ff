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
    """Return the fields of a dataclass, those of its body first, then those of its bases."""
    written: dict[str, tuple[str, str, str]] = {}
    for each in reversed(kind.__mro__):
        written |= _written(each)
    found = []
    for field in fields(kind):
        meaning, type_, unit = written.get(field.name, ("", str(field.type), ""))
        required = field.default is MISSING and field.default_factory is MISSING
        default = None if field.default is MISSING else field.default
        found.append(FieldDoc(field.name, meaning, type_, default, required, unit))
    here = _written(kind)
    return sorted(found, key=lambda each: each.name not in here)


def about(kind: type) -> str:
    """Return the docstring of a class without its fields."""
    return inspect.cleandoc((vars(kind).get("__doc__") or "").partition(f"\n{_HEADING}\n")[0])


def document(kind: object) -> None:
    """Put the fields of a dataclass into its docstring, once, so that `help()` shows them."""
    if not isinstance(kind, type) or not is_dataclass(kind):
        return
    text = vars(kind).get("__doc__") or ""
    if f"\n{_HEADING}\n" in text or not fields(kind):
        return
    kind.__doc__ = "\n".join([inspect.cleandoc(text), "", _HEADING, *field_lines(kind), ""])


def field_lines(kind: type) -> list[str]:
    """Return the fields of a dataclass as text: name, default, unit, and below them the meaning."""
    lines = []
    for each in field_docs(kind):
        default = "" if each.required else f" = {'not set' if each.default is None else each.default}"
        unit = f" ({each.unit or each.type})"
        meaning = textwrap.wrap(each.meaning, 88, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines += [f"    {each.name}{default}{unit}", *meaning]
    return lines


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
