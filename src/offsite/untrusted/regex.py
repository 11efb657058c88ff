"""Refuse regular expressions of an untrusted tokenizer that could backtrack without bound.

The number of ways to match is bounded from a pattern's shape; the pattern is never run. Escapes and classes
become one letter, and groups are folded, from the innermost outwards. The worker's limits of time hold besides
(`sandbox`): this check gives the reason before any data are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from offsite.errors import UserError

_LONGEST = 5000  # characters of one pattern
_LONGEST_TOGETHER = 20_000  # characters of all patterns of a file; the longest honest file has 2,000
_DEEPEST = 16  # groups within groups; honest patterns have 2
_LONG = 64  # of a written bound: what may repeat more often counts as endless
_MOST_ENDLESS = 2  # repetitions in one alternative, of which one may fail; honest ones have no more
_MOST_WAYS = 1000  # for the optional parts of one alternative; honest ones have 16
_CALLS = re.compile(r"\\[1-9kgcCM]|\(\?[~{]|\(\*")  # references, control characters, absent groups, callouts
_ESCAPES = re.compile(r"\\[^1-9kgcCM]")
_FLAGS = re.compile(r"^\(\?[im-]+\)")  # elsewhere flags would split the pattern anew; x would hide its shape
_OPENED = re.compile(r"\(\?(?:<?[!=]|>|<\w+>|[im-]*:)")
_REPEATED = re.compile(r"\([^()]*[*+?|}][^()]*\)[*+{]")  # what matches in several ways, again and again
_GROUP = re.compile(r"\(([^()]*)\)(\?[?+]?)?")
_ITEM = re.compile(r"(.)(?:([*+?])|\{(\d{0,9})(,?)(\d{0,9})\}(\+?))?([?+]?)", re.DOTALL)


class _Shape(NamedTuple):
    """How an alternative, or several, may be matched."""

    endless: int
    """Repetitions without end."""
    tried: int
    """Those of them that something must follow, so that each length may be tried."""
    ways: int
    """To match all else."""
    sound: bool


def check_patterns(file: Path, patterns: Sequence[object]) -> None:
    """Refuse the regular expressions of a `file` that may backtrack without bound; skip what is no text."""
    texts = [pattern for pattern in patterns if isinstance(pattern, str)]
    total = sum(map(len, texts))
    if total > _LONGEST_TOGETHER and max(map(len, texts)) <= _LONGEST:
        raise UserError(
            f"{file} has patterns of {total} characters together; at most {_LONGEST_TOGETHER} are read."
        )
    for text in texts:
        if not _sound(text):
            raise UserError(f"{file} has a pattern that may take for ever on a text: {text!r:.80}.")


def _sound(pattern: str) -> bool:
    if len(pattern) > _LONGEST:
        return False  # what follows takes time squared
    plain = _ESCAPES.sub("_", pattern)
    plain = re.sub(r"\[\^?\]?[^\[\]]*(\[[^\]]*\][^\[\]]*)*\]", "_", plain)  # classes, some within classes
    if _CALLS.search(plain):
        return False
    plain = _OPENED.sub("(", _FLAGS.sub("", plain))
    if _depth(plain) > _DEEPEST:
        return False
    while groups := list(_GROUP.finditer(plain)):
        if _REPEATED.search(plain) or not all(_shape(group[1]).sound for group in groups):
            return False
        plain = _GROUP.sub(_folded, plain)
    return _shape(plain).sound


def _depth(plain: str) -> int:
    """Count how many groups stand within each other at most."""
    steps = ({"(": 1, ")": -1}.get(letter, 0) for letter in plain)
    return max(accumulate(steps), default=0)


def _folded(group: re.Match[str]) -> str:
    """Return letters that repeat as the `group` does, whether it is optional or not."""
    shape, optional = _shape(group[1]), group[2] or ""
    tried = "_+" * shape.tried + "_" if shape.tried else ""
    rest = ("_*" if optional else "_+") * (shape.endless - shape.tried)
    least = 0 if optional else 1
    ways = f"_{{{least},{shape.ways}}}" if shape.ways > least else ""
    return tried + rest + ways or "_"


def _shape(text: str) -> _Shape:
    """Combine the alternatives in a text without groups."""
    shapes = [_alternative(each) for each in text.split("|")]
    return _Shape(
        max(shape.endless for shape in shapes),
        max(shape.tried for shape in shapes),
        sum(shape.ways for shape in shapes),
        all(shape.sound for shape in shapes),
    )


def _alternative(text: str) -> _Shape:
    """Count in one alternative; an endless part that something must follow may be tried at every length."""
    endless = tried = waiting = 0
    ways, quantified = 1, False
    for item in _ITEM.finditer(text):
        if item[1] in "*+?" or (item[1] == "{" and quantified):
            return _Shape(0, 0, 1, sound=False)  # repeats what repeats
        least, most = _bounds(item)
        quantified = (least, most) != (1, 1)
        if least:
            tried, waiting = tried + waiting, 0
        if least < most > _LONG:
            new = 2 if item[6] else 1  # a{1,3}+ repeats what repeats, and is honest where nothing follows
            endless, waiting = endless + new, waiting + new
        else:
            ways *= int(most - least) + 1
    sound = endless <= _MOST_ENDLESS and tried < _MOST_ENDLESS and ways <= _MOST_WAYS
    return _Shape(endless, tried, ways, sound)


def _bounds(item: re.Match[str]) -> tuple[float, float]:
    """Count how often one item of a pattern may and must stand there."""
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
