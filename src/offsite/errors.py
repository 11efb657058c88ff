"""What goes wrong because of what was asked: one sentence with the asker's own word and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the caller can put right; its text is one sentence fit to be shown as it is."""


def brief(value: object, most: int = 120) -> str:
    """`value` in a few words on one line, for the midst of a sentence: what strangers wrote has no bounds."""
    words = printable(" ".join(str(value)[: 4 * most].split())).rstrip(".")
    return words if len(words) <= most else words[: most - 3] + "..."


def printable(text: str) -> str:
    """`text` with every character escaped that a terminal would obey instead of showing it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of a refusal of `word`: the nearest of the `known` names, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(names) + "."
