"""What a stranger's regular expression may be: one that cannot try without end on a text.

An engine that fails goes back and tries anew. How often is bounded here by a pattern's shape; it is never run.
Escapes and classes become one letter, and groups are folded, from the innermost outwards.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from offsite.errors import UserError

_LONGEST = 5000  # characters
_LONG = 64  # of a written bound: what may repeat more often counts as endless
_MOST_ENDLESS = 2  # repetitions in one alternative, of which one may fail; honest ones have no more
_MOST_WAYS = 1000  # for the optional parts of one alternative; honest ones have 16
_CALLS = re.compile(r"\\[1-9kg]|\(\?[~{]|\(\*")  # to groups, absent and called out
_FLAGS = re.compile(r"^\(\?[a-z-]+\)")  # elsewhere they would part the pattern anew
_OPENED = re.compile(r"\(\?(?:<?[!=]|>|<\w+>|[a-z-]*:)")
_REPEATED = re.compile(r"\([^()]*[*+?|}][^()]*\)[*+{]")  # what matches in several ways, again and again
_GROUP = re.compile(r"\(([^()]*)\)(\?[?+]?)?")
_ITEM = re.compile(r"(.)(?:([*+?])|\{(\d{0,9})(,?)(\d{0,9})\}(\+?))?([?+]?)", re.DOTALL)


class _Shape(NamedTuple):
    """How an alternative, or several, may be matched."""

    endless: int
    """Repetitions without end."""
    ways: int
    """To match all else."""
    sound: bool


def check_pattern(file: Path, pattern: object) -> None:
    """Refuse a regular expression, of a `file`, that may take time without end; what is no text is none."""
    if isinstance(pattern, str) and not _sound(pattern):
        raise UserError(f"{file} has a pattern that may take for ever on a text: {pattern!r:.80}.")


def _sound(pattern: str) -> bool:
    if len(pattern) > _LONGEST:
        return False  # what follows takes time squared
    plain = re.sub(r"\\[^1-9kg]", "_", pattern)
    plain = re.sub(r"\[\^?\]?[^\[\]]*(\[[^\]]*\][^\[\]]*)*\]", "_", plain)  # classes, some within classes
    if _CALLS.search(plain):
        return False
    plain = _OPENED.sub("(", _FLAGS.sub("", plain))
    while groups := list(_GROUP.finditer(plain)):
        if _REPEATED.search(plain) or not all(_shape(group[1]).sound for group in groups):
            return False
        plain = _GROUP.sub(_folded, plain)
    return _shape(plain).sound


def _folded(group: re.Match[str]) -> str:
    """Letters that repeat as the `group` does."""
    shape, optional = _shape(group[1]), group[2] or ""
    if (shape.endless, shape.ways) == (0, 1):
        return "_" + optional
    if optional:
        return "_*" * shape.endless + f"_{{0,{shape.ways}}}"
    return "_+" * shape.endless + (f"_{{1,{shape.ways}}}" if shape.ways > 1 else "")


def _shape(text: str) -> _Shape:
    """Of the alternatives in a text without groups."""
    shapes = [_alternative(each) for each in text.split("|")]
    return _Shape(
        max(shape.endless for shape in shapes),
        sum(shape.ways for shape in shapes),
        all(shape.sound for shape in shapes),
    )


def _alternative(text: str) -> _Shape:
    """Of one alternative: each endless part that something must follow may be tried at every length."""
    endless = tried = waiting = 0
    ways, quantified = 1, False
    for item in _ITEM.finditer(text):
        if item[1] in "*+?" or (item[1] == "{" and quantified):
            return _Shape(0, 1, sound=False)  # repeats what repeats
        least, most = _bounds(item)
        quantified = (least, most) != (1, 1)
        if least:
            tried, waiting = tried + waiting, 0
        if least < most > _LONG:
            new = 2 if item[6] else 1  # a{1,3}+ repeats what repeats, and is honest where nothing follows
            endless, waiting = endless + new, waiting + new
        else:
            ways *= int(most - least) + 1
    return _Shape(endless, ways, endless <= _MOST_ENDLESS and tried < _MOST_ENDLESS and ways <= _MOST_WAYS)


def _bounds(item: re.Match[str]) -> tuple[float, float]:
    """How often one item of a pattern may and must stand there."""
    _, sign, low, comma, high, again, lazy = item.groups()
    if sign:
        return {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[sign]
    if not (low or high):  # no count at all
        return 1, 1
    least = int(low or 0)
    if again:
        return least, math.inf
    most: float = int(high) if high else math.inf if comma else least
    return (0 if lazy and not comma else least), most  # a{3}? is three or none
