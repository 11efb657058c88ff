"""The picture of a study: what each method loses against its gap, and the numbers of it."""

from __future__ import annotations

from collections.abc import Sequence

from offsite.report.figures import PALETTE, Figure, drawn, escaped, layout_of, limits
from offsite.report.part import Chapter, PageTable, Shown, number
from offsite.results.measures import ACCURACY, CHOICE, Measure
from offsite.results.runs import Group
from offsite.results.schema import ROWS
from offsite.results.statistics import SeedMean

_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up")
_Dot = tuple[Group, SeedMean, SeedMean]
_ZERO_SHOT, _FINE_TUNED = ROWS[:2]
_READING = (
    "Each dot is one method on one budget. To the right: loss, how much worse plugged in is than fine-tuned. "
    "Upward: gap, how much worse the emulator tuned is than plugged in. The best is at the upper left. The "
    "dashed line is zero-shot: a method on it keeps nothing of what fine-tuning gains."
)


def loss_and_gap(
    groups: Sequence[Group], measure: Measure, judged: Sequence[str], answered: Sequence[str]
) -> list[Chapter]:
    """A chapter on the mean over the tasks `judged`, in nats, and over those `answered`, in points.

    None where no method has both a loss and a gap on all tasks.
    """
    pairs = [(group, group.loss(judged, measure), group.gap(judged, measure)) for group in groups]
    known = [(group, loss, gap) for group, loss, gap in pairs if loss and gap]
    if not known:
        return []
    on = " and ".join(judged)
    by = "nats a question of choice nll" if measure is CHOICE else "nats a token of answer nll"
    figure = Shown(
        f"Loss against gap, {by}",
        _figure(known, measure, judged),
        f"Loss against gap of each method on {on}; the table holds the numbers",
        "upper left is best",
    )
    notes = [_READING, f"On {'the mean of ' if len(judged) > 1 else ''}{on}."]
    return [
        Chapter("Loss and gap", notes=notes, figures=[figure], table=_table(groups, measure, judged, answered))
    ]


def _figure(known: Sequence[_Dot], measure: Measure, judged: Sequence[str]) -> Figure:
    fall = known[0][0].itself.fall(judged, measure)
    losses = [loss.value + side * (loss.stderr or 0.0) for _, loss, _ in known for side in (-1, 1)]
    gaps = [gap.value + side * (gap.stderr or 0.0) for *_, gap in known for side in (-1, 1)]
    ends = [0.0, *([fall.value] if fall else [])]
    layout = layout_of(height=440, showlegend=False)
    layout["xaxis"] |= {"range": limits([*losses, *ends], 0.12), "title": {"text": "loss", "standoff": 8}}
    upward = limits([*gaps, 0.0], 0.12)
    layout["yaxis"] |= {"range": upward, "title": {"text": "gap", "standoff": 8}}
    layout["margin"] |= {"b": 52}
    lines = [
        _upright(row.name, row.key, row.colour, at, upward)
        for row, at in zip((_FINE_TUNED, _ZERO_SHOT), ends, strict=False)
    ]
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "layer": "below"}
    layout["shapes"] = [across | {"line": {"color": "rgba(128, 134, 145, 0.5)", "width": 1}}]
    methods = list(dict.fromkeys(group.method for group, *_ in known))
    return drawn(
        [*lines, *(_dots(known, method, place, measure) for place, method in enumerate(methods))], layout
    )


def _dots(known: Sequence[_Dot], method: str, place: int, measure: Measure) -> Figure:
    """One method, a dot for each of its budgets."""
    own = [each for each in known if each[0].method == method]
    colour = PALETTE[place % len(PALETTE)]
    symbol = _SYMBOLS[place // len(PALETTE) % len(_SYMBOLS)]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": escaped(method),
        "meta": f"method {place}",
        "x": [loss.value for _, loss, _ in own],
        "y": [gap.value for *_, gap in own],
        "error_x": _error([loss for _, loss, _ in own], colour),
        "error_y": _error([gap for *_, gap in own], colour),
        "marker": {"color": colour, "size": 10, "symbol": symbol},
        "text": [f"{escaped(method, 24)} {group.stored:.2f}" for group, *_ in own],
        "textposition": "top right",
        "cliponaxis": False,
        "hovertext": [
            f"{escaped(method)}, keep {group.stored:.2f}<br>loss {number(loss, measure.digits)}<br>"
            f"gap {number(gap, measure.digits)}"
            for group, loss, gap in own
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _error(values: Sequence[SeedMean], colour: str) -> Figure:
    array = [value.stderr or 0.0 for value in values]
    return {"type": "data", "array": array, "color": colour, "thickness": 1, "width": 0}


def _upright(name: str, key: str, colour: str, at: float, upward: Sequence[float]) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": key,
        "name": name,
        "x": [at, at],
        "y": list(upward),
        "line": {"color": colour, "width": 1.5, "dash": "dash" if key == _ZERO_SHOT.key else "solid"},
        "hovertemplate": f"{name}<extra></extra>",
    }


def _table(
    groups: Sequence[Group], measure: Measure, judged: Sequence[str], answered: Sequence[str]
) -> PageTable:
    by = [(measure, judged), *([(ACCURACY, answered)] if answered else [])]
    head = ["Method", "Keep", "Seeds", *(f"{what}, {each.unit}" for each, _ in by for what in ("Loss", "Gap"))]
    rows = []
    for group in groups:
        differences = [
            number(of(tasks, each), each.digits) for each, tasks in by for of in (group.loss, group.gap)
        ]
        gain = number(group.gain(judged, measure), 1, 100)
        rows.append([group.method, f"{group.stored:.2f}", str(group.seeds), *differences, gain])
    return PageTable([*head, "Gain, %"], rows)
