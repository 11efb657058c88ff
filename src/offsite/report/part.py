"""What a page is made of: parts, each with its sentences, figures and tables."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from offsite.errors import UserError, brief
from offsite.report.figures import Figure
from offsite.results.statistics import Estimate, SeedMean

_READABLE = 64 << 20  # bytes of a JSON file; a study of ten thousand runs is a tenth of that
_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True)
class Shown:
    """A figure, what it shows, how to read it, and its description for those who do not see it."""

    caption: str
    figure: Figure
    label: str
    hint: str = ""
    depths: bool = False
    """Whether its colours run from the bottom of the stack to its top, which a legend then shows."""


@dataclass(frozen=True)
class PageTable:
    """Numbers in rows; the first cell names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()
    """The rows that stand out."""
    keys: Sequence[str] = ()
    """Which of the five rows each is, for its colour."""


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands under it, in this order."""

    title: str
    text: Sequence[str] = ()
    notes: Sequence[str] = ()
    rows: bool = False
    """Whether the five rows are explained here."""
    figures: Sequence[Shown] = ()
    paired: bool = True
    """Whether figures stand side by side where there is room."""
    table: PageTable | None = None
    after: str = ""
    """A note under the table."""


@dataclass(frozen=True)
class KeyFigure:
    """A number set large, with its error and unit, a second one, and what they mean."""

    number: str
    unit: str
    meaning: str
    also: str = ""


@dataclass(frozen=True)
class Part:
    """One subject of a page: the values of part.html.jinja."""

    title: str
    """What it is about, for the page's title and its list of parts."""
    overline: str
    headline: str
    lead: str = ""
    figures: Sequence[KeyFigure] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    chapters: Sequence[Chapter] = ()
    block: str = ""
    """What repeats it, for a shell."""
    private: str | None = None
    """Why the page is not to be sent, if so: a whole sentence."""


class Loose(BaseModel):
    """What a file of ours says; more may stand in it."""

    model_config = ConfigDict(extra="ignore")


def read(model: type[_M], data: Mapping[str, object], what: str, maker: str) -> _M:
    """`data` as a `model`; a UserError names the first place of `what` that does not fit, and who writes it."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"at {brief(where)!r}, {first['msg'][0].lower()}{brief(first['msg'][1:], 200)}"
        raise UserError(f"{what} cannot be reported: {why}; let {maker} write it anew.") from error


def check_size(file: Path) -> None:
    """Refuse a file that no command of ours wrote."""
    if file.stat().st_size > _READABLE:
        raise UserError(f"{str(file)!r} is larger than any result of offsite; take it out of the folder.")


def command_block(call: str | Sequence[str] | None, facts: Mapping[str, object]) -> str:
    """What repeats a run: the command, the rest as comments, so that a shell takes the whole."""
    known = {one_line(name): one_line(str(fact)) for name, fact in facts.items() if fact is not None}
    width = max(map(len, known), default=0)
    comments = [f"# {name:<{width}}  {fact}" for name, fact in known.items()]
    words = one_line(call if isinstance(call, str) else shlex.join(call or []))  # a second line would run too
    return "\n".join([words, "", *comments]).strip()


def record_block(record: Mapping[str, object], facts: Mapping[str, object] | None = None) -> str:
    """The same from what `offsite.provenance.record` wrote, with `facts` before the versions."""
    about = {name: record.get(name) for name in ("seed", "date", "machine")}
    versions = record.get("versions")
    known = versions if isinstance(versions, Mapping) else {}
    call = record.get("call")
    return command_block(call if isinstance(call, str) else None, {**(facts or {}), **about, **known})


def one_line(text: str) -> str:
    """`text` without what would end the line: what follows would run where it is pasted."""
    return "".join(char if char.isprintable() else " " for char in text)


def number(value: Estimate | float | None, digits: int, scale: float = 1.0) -> str:
    """As in "51.3 ± 2.9", with a dagger where the error is over questions; a dash for what is not known."""
    if value is None:
        return "–"
    found = value if isinstance(value, Estimate) else Estimate(value, None)
    if not math.isfinite(found.value):
        return "–"
    mark = found.mark if isinstance(found, SeedMean) else ""
    text = f"{found.show(digits, scale)} {found.spread(digits, scale)}".strip() + mark
    return text.replace(" ", "\u00a0")  # on one line, in narrow cells too


def millions(count: int) -> str:
    """As in "134.5 M"; small models in thousands."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count / 1e3:,.1f} k"
