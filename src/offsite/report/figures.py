"""The figures, as plotly JSON.

They hold our own words and what `escaped` has made harmless: plotly draws markup, and a string from outside
must not become any.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from offsite.errors import UserError
from offsite.results.measures import Measure
from offsite.results.schema import ROWS, LossPoint, Results, RowLabel
from offsite.results.statistics import Estimate

Figure = dict[str, Any]
"""A plotly figure: `data` (traces, each with its row's key as `meta`) and `layout`."""

_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
_ROW_HEIGHT = 46  # pixels: a dot with its number above
_BAND = "rgba(128, 134, 145, 0.14)"  # reads on both grounds


# From the bottom of the stack to its top; these and all between keep 3:1 contrast on light and dark alike.
DEPTHS = ("#3f7fc8", "#8f64c8", "#c8558f", "#d0672b")
PALETTE = ("#1d9475", "#3f7fc8", "#d0672b", "#8f64c8", "#b08449", "#c8558f", "#858b94")
"""For whatever has no colour of its own, contrasting alike."""


def plotly_js() -> str:
    """The whole of plotly.js, to be written into the page; a UserError where plotly is not installed."""
    return str(_plotly().offline.get_plotlyjs())


def five_rows(results: Results, task: str, measure: Measure) -> Figure | None:
    """One dot per row with its error, on a band from zero-shot to fine-tuned; None where no row has it."""
    found = [(row, measure.of(results.rows[row.key][task])) for row in ROWS]
    known = [(row, value) for row, value in found if value]
    if not known:
        return None
    layout = layout_of(height=_ROW_HEIGHT * len(ROWS) + 44, showlegend=False)
    layout["xaxis"] |= {"range": _range([value for _, value in known])}
    layout["yaxis"] |= {"range": [len(ROWS) - 0.5, -0.7], "tickvals": [*range(len(ROWS))], "showgrid": False}
    layout["yaxis"] |= {"ticktext": [_tick(row) for row in ROWS], "ticklabelstandoff": 10}
    layout["shapes"] = band({row.key: value.value for row, value in known})
    return drawn([_dot(row, value, measure.digits) for row, value in known], layout)


def loss_curves(results: Results) -> Figure | None:
    """Loss against steps, training dotted and held-out solid; None where none were recorded."""
    curves = results.curves or {}
    lines = [line for row in ROWS for line in _lines(row, curves.get(row.key, []))]
    if not lines:
        return None
    return drawn(lines, over_steps(height=340, showlegend=True))


def curve(row: RowLabel, points: list[LossPoint]) -> Figure | None:
    """The same of one row's tuning alone."""
    lines = _lines(row, points)
    return drawn(lines, over_steps(height=340, showlegend=True)) if lines else None


def layout_of(height: int, showlegend: bool) -> Figure:
    """Transparent and without zoom: the page's own colours show through, a finger scrolls past."""
    axis = {"fixedrange": True, "zeroline": False, "automargin": True}
    return {
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 28},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13, "color": "#808691"},
        "hoverlabel": {"bgcolor": "#23272d", "bordercolor": "#23272d", "font": {"color": "#ffffff"}},
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": showlegend,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom"},
        "xaxis": axis | {"nticks": 6},
        "yaxis": axis | {"nticks": 6},
    }


def over_steps(height: int, showlegend: bool) -> Figure:
    """The layout of what moves with the steps of a training."""
    layout = layout_of(height, showlegend)
    layout["xaxis"] |= {"title": {"text": "step", "standoff": 8}, "rangemode": "tozero", "showgrid": False}
    layout["yaxis"] |= {"ticklabelstandoff": 6}
    layout["margin"] |= {"b": 48, "t": 64 if showlegend else 8}
    return layout


def drawn(traces: list[Figure], layout: Figure) -> Figure:
    """The figure, checked by plotly; numbers that are not finite become gaps. Raises as `plotly_js` does."""
    figure = _plotly().graph_objects.Figure(traces, layout)
    # The default template is 6 kB of colours for kinds of traces that never appear here.
    figure.layout.template = None
    plain: Figure = json.loads(figure.to_json())
    return plain


def escaped(text: object, most: int = 60) -> str:
    """What a file says, for a figure: no markup, no control characters, no longer than `most`."""
    words = "".join(char if char.isprintable() else " " for char in str(text))
    short = words if len(words) <= most else words[: most - 1] + "…"
    # A brace would be a place to fill in where plotly reads a template.
    return html.escape(short, quote=False).replace("{", "&#123;").replace("}", "&#125;")


def shades(count: int) -> list[str]:
    """A colour for each of `count` layers, from the bottom to the top, between the colours of DEPTHS."""
    stops = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in DEPTHS]
    found = []
    for number in range(count):
        place = number / max(1, count - 1) * (len(stops) - 1)
        left = min(int(place), len(stops) - 2)
        mixed = (a + (b - a) * (place - left) for a, b in zip(stops[left], stops[left + 1], strict=True))
        found.append("#" + "".join(f"{round(part):02x}" for part in mixed))
    return found


def limits(values: Sequence[float], room: float = 0.08) -> list[float]:
    """An axis from the least to the greatest value with a share of `room` at both ends."""
    low, high = min(values), max(values)
    beyond = (high - low) * room or abs(high) * room or 1.0
    return [low - beyond, high + beyond]


def _plotly() -> Any:
    try:
        import plotly.graph_objects
        import plotly.offline
    except ImportError as error:
        raise UserError("A report needs plotly: run `pip install 'offsite[report]'`.") from error
    return plotly


def _dot(row: RowLabel, value: Estimate, digits: int) -> Figure:
    shown = f"{value.show(digits)} {value.spread(digits)}".strip()
    error = {"type": "data", "array": [value.stderr or 0.0], "visible": value.stderr is not None}
    return {
        "type": "scatter",
        "mode": "markers+text",
        "meta": row.key,
        "name": row.name,
        "x": [value.value],
        "y": [ROWS.index(row)],
        "error_x": error | {"color": row.colour, "thickness": 1.75, "width": 4},
        "marker": {"color": row.colour, "size": 13 if row.key == "plugged_in" else 10},
        "text": [value.show(digits)],
        "textposition": "top center",
        "cliponaxis": False,
        "hovertemplate": f"{row.name}: {shown}<extra></extra>",
    }


def _lines(row: RowLabel, points: list[LossPoint]) -> list[Figure]:
    """The training and the held-out line of one row; a loss that was not finite leaves a gap."""
    lines = []
    for what, dash, width in (("loss", "dot", 1.5), ("heldout", "solid", 2.5)):
        taken = [point for point in points if getattr(point, what) is not None]
        label = f"{row.name}, {'training' if what == 'loss' else 'held out'}"
        if not taken:
            continue
        lines.append(
            {
                "type": "scatter",
                "mode": "lines" if len(taken) > 1 else "markers",
                "meta": row.key,
                "name": label,
                "x": [point.step for point in taken],
                "y": [getattr(point, what) for point in taken],
                "line": {"color": row.colour, "dash": dash, "width": width},
                "marker": {"color": row.colour},
                "hovertemplate": f"{label}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            }
        )
    return lines


def _tick(row: RowLabel) -> str:
    return f"<b>{row.name}</b>" if row.key == "plugged_in" else row.name


def _range(values: list[Estimate]) -> list[float]:
    """From the lowest to the highest error bar, with room for the numbers at the ends."""
    low = min(value.value - (value.stderr or 0.0) for value in values)
    high = max(value.value + (value.stderr or 0.0) for value in values)
    return limits([low, high], room=0.1)


def band(values: dict[object, float]) -> list[Figure]:
    """What fine-tuning moves: the ground on which the plugged-in dot is read."""
    if "zero_shot" not in values or "fine_tuned" not in values:
        return []
    edges = {"x0": values["zero_shot"], "x1": values["fine_tuned"], "y0": 0, "y1": 1}
    line = {"width": 0}
    return [{"type": "rect", "yref": "paper", "layer": "below", "fillcolor": _BAND, "line": line, **edges}]
