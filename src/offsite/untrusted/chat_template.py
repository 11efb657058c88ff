"""Check what an untrusted chat template does: write out messages, and nothing that no honest template needs.

transformers renders templates in jinja's sandbox, which keeps them from code but not from taking time and
memory without end. A template is parsed here and never run, not even in part: jinja works constants out as it
compiles. What only shows on some messages cannot be seen here.
"""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from offsite.errors import UserError, brief

_LARGEST = 100_000  # of the numbers written in a template
_LONGEST_RANGE = 1000
_LONGEST = 128 << 10  # characters of a template; the longest honest ones have 20,000
_FIELD_ENDS, _FIELD_BEGINS, _WIDTH = re.compile(r"[}a-zA-Z]"), re.compile(r"[%{]"), re.compile(r"\d{4}")
_DUNDER = re.compile(r"__\w+__")
_ELSEWHERE = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_UNFIT = {"lipsum", "cycler", "joiner", "self", "attr"}


class _Generation(Extension):
    """The block `generation`, which transformers adds to mark the assistant's words."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own way

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse its body, as if the marks were not there."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def check_template(file: Path, text: object) -> None:
    """Refuse a chat template, of a `file`, that reaches for anything but messages or may run without end."""
    if not isinstance(text, str):
        raise UserError(f"{file} has a chat template that is no text.")
    if len(text) > _LONGEST:
        raise UserError(f"{file} has a chat template of {len(text)} characters; at most {_LONGEST} are read.")
    try:
        tree = Environment(extensions=[loopcontrols, _Generation]).parse(text)
        wrong = next(filter(None, map(_wrong, tree.find_all(nodes.Node))), "")
    except TemplateSyntaxError as error:
        raise UserError(f"{file}: the chat template cannot be read ({brief(error)}).") from error
    except (RecursionError, MemoryError) as error:
        raise UserError(f"{file}: the chat template cannot be read, so deep does it go.") from error
    if wrong:
        raise UserError(f"{file}: the chat template {wrong}, which no honest one needs.")


def _wrong(node: nodes.Node) -> str:
    """Name what is unfit about one node of a template; empty for nothing."""
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return f"reaches for {node.attr!r:.40}"
    if isinstance(node, nodes.Name | nodes.Filter) and (node.name in _UNFIT or _DUNDER.search(node.name)):
        return f"reaches for {node.name!r:.40}"
    if isinstance(node, nodes.Const):
        return _wrong_value(node.value)
    if isinstance(node, _ELSEWHERE):
        return "reads other files"
    if isinstance(node, nodes.Pow | nodes.Mul):
        return f"multiplies by {node.operator!r}"
    if isinstance(node, nodes.Concat | nodes.Add) and _doubles(node):
        return "doubles a text"
    return _wrong_range(node)


def _wrong_value(value: object) -> str:
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        return f"writes a number above {_LARGEST}"
    if isinstance(value, str) and _DUNDER.search(value):
        return f"reaches for {value!r:.40}"
    if isinstance(value, str) and _is_wide(value):
        return f"writes as wide as {value!r:.40}"
    return ""


def _is_wide(text: str) -> bool:
    """Tell whether a format has a field of a thousand columns or more, in linear time."""
    for part in _FIELD_ENDS.split(text):
        field = _FIELD_BEGINS.search(part)
        if field and _WIDTH.search(part, field.end()):
            return True
    return False


def _doubles(node: nodes.Concat | nodes.Add) -> bool:
    """Tell whether a text is joined to itself."""
    parts = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
    named = [str(part) for part in parts if isinstance(part, nodes.Name | nodes.Getattr | nodes.Getitem)]
    return len(set(named)) < len(named)


def _wrong_range(node: nodes.Node) -> str:
    """Name what is wrong with ranges: long ones, and one within another's loop."""
    numbers = [part for part in getattr(node, "args", ()) or () if isinstance(part, nodes.Const)]
    if _is_range(node) and any(number.value > _LONGEST_RANGE for number in numbers):
        return f"has a range above {_LONGEST_RANGE}"
    if not isinstance(node, nodes.For) or not any(map(_is_range, _within(node.iter))):
        return ""
    if any(_is_range(inner) for part in node.body for inner in _within(part)):
        return "has a range within a range"
    return ""


def _within(node: nodes.Node) -> list[nodes.Node]:
    return [node, *node.find_all(nodes.Node)]


def _is_range(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "range"
