"""Gradient fidelity: how truly emulators show the adapter where to go, against what they store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from offsite.report.figures import PALETTE, Figure, drawn, escaped, layout_of
from offsite.report.part import Chapter, Loose, PageTable, Part, Shown, number, read, record_block
from offsite.results.schema import Number

_PANELS = (
    ("cosine", "Cosine of the adapter’s gradients", "1 is the same direction"),
    ("relative_error", "Relative error of the gradient", "0 is the same gradient"),
    ("loss_gap", "Loss above the model’s, nats a token", "lower is better"),
)


class FidelityPoint(Loose):
    """One emulator."""

    keep: float
    method: str = "emulator"
    cosine: Number = None
    relative_error: Number = None
    loss_gap: Number = None


class FidelityFile(Loose):
    """Points of several methods, and what they were measured on."""

    points: Annotated[list[FidelityPoint], Field(min_length=1)]
    about: dict[str, object] = Field(default_factory=dict)
    record: dict[str, object] = Field(default_factory=dict)


def fidelity(data: Mapping[str, object]) -> Part:
    """The part about points of fidelity, or about what `offsite inspect --against ... --json` printed of one.

    Raises a UserError where it has another shape.
    """
    one = data.get("fidelity")
    if isinstance(one, Mapping):
        about = {name: one.get(name) for name in ("model", "text", "blocks", "length") if name in one}
        data = {"points": [{"method": data.get("method", "emulator"), **one}], "about": about}
    found = read(FidelityFile, data, "These points of fidelity", "`offsite inspect --against`")
    points = [point.model_dump() for point in found.points]
    rows = [
        [p.method, f"{p.keep:.2f}", number(p.cosine, 3), number(p.relative_error, 3), number(p.loss_gap, 3)]
        for p in found.points
    ]
    best = max(found.points, key=lambda p: -1.0 if p.cosine is None else p.cosine)
    return Part(
        title="Gradient fidelity",
        overline="Offsite tuning, gradient fidelity",
        headline=f"The truest emulator’s gradients have a cosine of {number(best.cosine, 2)} to the model’s.",
        lead=f"That is {best.method} at keep {best.keep:.2f}, the adapter untuned.",
        facts={name.capitalize(): str(value) for name, value in found.about.items()},
        chapters=[
            Chapter(
                "How true the emulators are, against keep",
                figures=against_keep(points, lines=True),
                table=PageTable(["Method", "Keep", "Cosine", "Relative error", "Loss gap"], rows),
            )
        ],
        block=record_block(found.record) if found.record.get("call") else "",
        private="What an emulator lacks of the model is its owner’s to know.",
    )


def against_keep(points: Sequence[Mapping[str, object]], *, lines: bool) -> list[Shown]:
    """Each known quantity of `points` (with `method`, `keep`) against keep, joined by `lines` for a method."""
    return [
        Shown(caption, figure, f"{caption} against the share of parameters kept", hint)
        for name, caption, hint in _PANELS
        if (figure := _panel(points, name, lines=lines))
    ]


def _panel(points: Sequence[Mapping[str, Any]], name: str, *, lines: bool) -> Figure | None:
    known = [point for point in points if point.get(name) is not None]
    methods = list(dict.fromkeys(str(point["method"]) for point in known))
    traces = []
    for place, method in enumerate(methods):
        line = sorted((p for p in known if str(p["method"]) == method), key=lambda p: float(p["keep"]))
        colour = PALETTE[place % len(PALETTE)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if lines and len(line) > 1 else "markers",
                "name": escaped(method, 30),
                "x": [point["keep"] for point in line],
                "y": [point[name] for point in line],
                "line": {"color": colour, "width": 2},
                "marker": {"color": colour, "size": 8},
                "hovertext": [escaped(method)] * len(line),
                "hovertemplate": "%{hovertext}, keep %{x:.2f}: %{y:.3f}<extra></extra>",
            }
        )
    if not traces:
        return None
    several = len(traces) > 1
    layout = layout_of(height=320, showlegend=several)
    layout["xaxis"] |= {"title": {"text": "keep", "standoff": 8}}
    layout["margin"] |= {"b": 48, "t": 64 if several else 8}
    return drawn(traces, layout)
