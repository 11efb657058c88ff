"""One frontier: emulators of many settings, each with its loss and its gap."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from offsite.report.fidelity import against_keep
from offsite.report.figures import Figure, drawn, escaped, layout_of, limits, shades
from offsite.report.part import Chapter, Loose, PageTable, Part, Shown, number, read, record_block
from offsite.results.measures import ACCURACY, Measure, measures
from offsite.results.schema import ROWS, Number, Score
from offsite.results.statistics import Estimate

_RING = "#c8558f"
_ZERO_SHOT, _FINE_TUNED = ROWS[:2]
TaskScores = dict[str, Score]


class Figures(Loose):
    """A number and its standard error."""

    value: float
    stderr: Number = None


class ScoredEmulator(Loose):
    """One emulator: its settings, what is estimated of it, and its rows if it was scored."""

    settings: dict[str, object]
    stored: Number = None
    estimate: dict[str, Number] | None = None
    rows: dict[str, TaskScores] | None = None
    loss: Figures | None = None
    gap: Figures | None = None
    gain: Figures | None = None
    loss_points: Figures | None = None
    gap_points: Figures | None = None


class Ends(Loose):
    """The model's own rows."""

    zero_shot: TaskScores
    fine_tuned: TaskScores


class WishRecord(Loose):
    """What the owner asked for."""

    min_gap: str | None = None
    max_loss: str | None = None


class FrontierFile(Loose):
    """What frontier.json says, so far as it is drawn."""

    points: Annotated[list[ScoredEmulator], Field(min_length=1)]
    ends: Ends
    answer: str
    model: str | None = None
    method: str | None = None
    tasks: list[str] | None = None
    tuning: dict[str, object] | None = None
    notes: list[str] = Field(default_factory=list)
    wish: WishRecord = WishRecord()
    chosen: int | None = None
    closest: int | None = None
    call: str | None = None
    versions: dict[str, str] | None = None
    seed: int | None = None
    date: str | None = None
    machine: str | None = None

    @property
    def marked(self) -> int | None:
        """The point to look at: the chosen, or the closest to the wish."""
        place = self.closest if self.chosen is None else self.chosen
        return place if place is not None and 0 <= place < len(self.points) else None

    @property
    def mark(self) -> str:
        """Which of the two it is."""
        return "closest" if self.chosen is None else "chosen"


def frontier(data: Mapping[str, object]) -> Part:
    """The part about a `frontier.json`: `points`, `ends`, `answer` and what else is known.

    Raises a UserError where it has another shape.
    """
    found = read(FrontierFile, data, "This frontier", "`offsite frontier`")
    scored = [point for point in found.points if point.rows]
    headline, _, rest = re.sub("[;:] ", "\n", found.answer, count=1).partition("\n")
    count = f"{len(found.points)} emulators were estimated, {len(scored)} of them tuned and scored."
    return Part(
        title=f"Frontier: {found.model or found.method or 'emulators'}",
        overline="Offsite tuning, a frontier" + (f" · {found.date[:10]}" if found.date else ""),
        headline=headline if not rest else f"{headline}.",
        lead=f"{rest[:1].upper()}{rest[1:]}" or count,
        facts=_facts(found),
        chapters=[*_fronts(found), *_truth(found), _table(found)],
        block=record_block(found.model_dump(), found.tuning) if found.call else "",
        private="How emulators of the model were made, and how true they are, is its owner’s to know.",
    )


def _estimate(figures: Figures | None) -> Estimate | None:
    return None if figures is None else Estimate(figures.value, figures.stderr)


def _facts(found: FrontierFile) -> dict[str, str]:
    wish = []
    if found.wish.min_gap is not None:
        wish.append(f"a gap of {found.wish.min_gap} or more")
    if found.wish.max_loss is not None:
        wish.append(f"a loss of {found.wish.max_loss} or less")
    facts = {"Model": found.model, "Method": found.method, "Tasks": ", ".join(found.tasks or ())}
    facts |= {"Wished": " and ".join(wish)}
    return {name: fact for name, fact in facts.items() if fact}


def _fronts(found: FrontierFile) -> list[Chapter]:
    """Plugged in against emulator tuned, for each task."""
    chapters = []
    for task, end in found.ends.zero_shot.items():
        known = [
            (i, point) for i, point in enumerate(found.points)
            if point.rows and all(task in point.rows.get(row, {}) for row in ("emulator_tuned", "plugged_in"))
        ]  # fmt: skip
        figures = [
            Shown(
                measure.caption,
                _front(found, known, task, measure),
                f"Plugged in against emulator tuned on {task}: {measure.caption}; the table holds the numbers",
                "upper left is best" if measure is ACCURACY else "lower right is best",
            )
            for measure in (measures([end]) if known else [])
        ]
        if figures:
            chapters.append(
                Chapter(f"Plugged in against emulator tuned on {task}", notes=[_READING], figures=figures)
            )
    return chapters


_READING = (
    "Each dot is one emulator, from blue to orange the more it keeps; point at one for its settings. Upward "
    "the full model with the adapter, sideways what the data owner holds. On the slanted line the tuned "
    "emulator does as well as the full model: all is given away. The ring marks the emulator "
    "that the answer names."
)


def _front(
    found: FrontierFile, known: Sequence[tuple[int, ScoredEmulator]], task: str, measure: Measure
) -> Figure:
    def both(point: ScoredEmulator) -> list[Estimate | None]:
        return [measure.of((point.rows or {})[row][task]) for row in ("emulator_tuned", "plugged_in")]

    pairs = [(i, both(point)) for i, point in known]
    dots = [(i, x, y) for i, (x, y) in pairs if x and y]
    ends = {row: measure.of(getattr(found.ends, row.key)[task]) for row in (_ZERO_SHOT, _FINE_TUNED)
            if task in getattr(found.ends, row.key)}  # fmt: skip
    across = limits([x.value for _, x, _ in dots] or [0.0], 0.12)
    upward = limits([y.value for *_, y in dots] + [end.value for end in ends.values() if end] or [0.0], 0.12)
    layout = layout_of(height=400, showlegend=False)
    layout["xaxis"] |= {"range": across, "title": {"text": "emulator tuned", "standoff": 8}}
    layout["yaxis"] |= {"range": upward, "title": {"text": "plugged in", "standoff": 8}}
    layout["margin"] |= {"b": 52}
    lines = [_level(row, end, across, measure) for row, end in ends.items() if end]
    layout["annotations"] = [
        _tag(row.name, end.value, left=(row is _FINE_TUNED) == (measure is ACCURACY))
        for row, end in ends.items()
        if end
    ]
    return drawn([_diagonal(across, upward), *lines, *_marks(found, dots, measure)], layout)


def _marks(
    found: FrontierFile, dots: Sequence[tuple[int, Estimate, Estimate]], measure: Measure
) -> list[Figure]:
    colours = _colours(found)
    ringed = [(i, x, y) for i, x, y in dots if i == found.marked]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": "emulators",
        "meta": [i for i, *_ in dots],
        "x": [x.value for _, x, _ in dots],
        "y": [y.value for *_, y in dots],
        "error_x": _error([x for _, x, _ in dots]),
        "error_y": _error([y for *_, y in dots]),
        "marker": {"color": [colours[i] for i, *_ in dots], "size": 11},
        "hovertext": [_hover(found, i, x, y, measure) for i, x, y in dots],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    ring = {
        "type": "scatter",
        "mode": "markers+text",
        "name": found.mark,
        "meta": found.marked,
        "x": [x.value for _, x, _ in ringed],
        "y": [y.value for *_, y in ringed],
        "text": [f"<b>{found.mark}</b>"] * len(ringed),
        "textposition": "bottom center",
        "marker": {"symbol": "circle-open", "size": 22, "color": _RING, "line": {"width": 2.5}},
        "hoverinfo": "skip",
    }
    return [trace, ring] if ringed else [trace]


def _error(values: Sequence[Estimate]) -> Figure:
    array = [value.stderr or 0.0 for value in values]
    return {"type": "data", "array": array, "color": "rgba(128, 134, 145, 0.55)", "thickness": 1, "width": 0}


def _level(row: Any, end: Estimate, across: Sequence[float], measure: Measure) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": row.key,
        "name": row.name,
        "x": list(across),
        "y": [end.value, end.value],
        "line": {"color": row.colour, "width": 1.5, "dash": "dash"},
        "hovertemplate": f"{row.name}: {number(end, measure.digits)}<extra></extra>",
    }


def _tag(text: str, height: float, *, left: bool) -> Figure:
    """At the side where no emulator lies that does as its line says."""
    x, anchor = (0, "left") if left else (1, "right")
    where = {"xref": "paper", "x": x, "xanchor": anchor, "y": height, "yanchor": "bottom"}
    return where | {"text": text, "showarrow": False, "font": {"size": 12}}


def _diagonal(across: Sequence[float], upward: Sequence[float]) -> Figure:
    """Where the tuned emulator does as well as the full model; cut to the frame, or it would stretch it."""
    low, high = max(across[0], upward[0]), min(across[1], upward[1])
    ends = [low, high] if low < high else []
    line = {"color": "rgba(128, 134, 145, 0.7)", "width": 1}
    return {"type": "scatter", "mode": "lines", "name": "no gap", "x": ends, "y": ends, "line": line,
            "hovertemplate": "The tuned emulator does as well<extra></extra>"}  # fmt: skip


def _colours(found: FrontierFile) -> list[str]:
    """A shade for each point by what it keeps; one shade for what is not known."""
    scale = shades(101)
    known = [point.stored for point in found.points if point.stored is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)

    def shade(stored: float | None) -> str:
        if stored is None or high == low:
            return scale[50]
        return scale[round(100 * (stored - low) / (high - low))]

    return [shade(point.stored) for point in found.points]


def _hover(found: FrontierFile, place: int, x: Estimate, y: Estimate, measure: Measure) -> str:
    point = found.points[place]
    lines = [f"{escaped(name)} {escaped(_short(value))}" for name, value in point.settings.items()]
    if point.stored is not None:
        lines.append(f"stored {point.stored:.1%}")
    lines += [f"emulator tuned {number(x, measure.digits)}", f"plugged in {number(y, measure.digits)}"]
    return "<br>".join(lines)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _truth(found: FrontierFile) -> list[Chapter]:
    """Gradient fidelity against keep."""
    points = [
        {"method": found.method or "emulators", "keep": point.stored, **(point.estimate or {})}
        for point in found.points
        if point.stored is not None
    ]
    figures = against_keep(points, lines=False)
    return [Chapter("How true the emulators are, against keep", figures=figures)] if figures else []


def _table(found: FrontierFile) -> Chapter:
    knobs = list(dict.fromkeys(name for point in found.points for name in point.settings))
    figures = [
        ("Loss, nats", "loss", 3, 1), ("Gap, nats", "gap", 3, 1), ("Loss, points", "loss_points", 1, 1),
        ("Gap, points", "gap_points", 1, 1), ("Gain, %", "gain", 1, 100),
    ]  # fmt: skip
    head = ["", *knobs, "Stored", "Cosine", *(name for name, *_ in figures)]
    marked = found.marked
    rows = [
        [
            found.mark if place == marked else str(place + 1),
            *(_short(point.settings.get(knob, "–")) for knob in knobs),
            "–" if point.stored is None else f"{point.stored:.2f}",
            number((point.estimate or {}).get("cosine"), 3),
            *(number(_estimate(getattr(point, key)), digits, scale) for _, key, digits, scale in figures),
        ]
        for place, point in enumerate(found.points)
    ]
    bold = frozenset() if marked is None else frozenset([marked])
    after = (
        "Loss: how much worse plugged in is than fine-tuned; gap: how much worse emulator tuned is than "
        "plugged in, what the owner keeps; in nats of choice nll where tasks have choices, else of answer nll. "
        "Gain: the share of what fine-tuning gains that plugged in keeps. ± is one standard error over the "
        "questions. A dash stands where an emulator was not scored, a task has no such figure, or there is "
        "nothing to keep."
    )
    return Chapter("All emulators", notes=found.notes, table=PageTable(head, rows, bold), after=after)
