"""A blueprint drawn as the stack that it makes: what stands in each place, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Annotated

from pydantic import Field

from offsite.bundles.contents import Sent
from offsite.model.split import Split
from offsite.report.figures import Figure, drawn, layout_of
from offsite.report.part import Loose

_FLOOR = 17  # pixels: one layer
KINDS = {
    "adapter": "#3f7fc8",
    "kept whole": "#1d9475",
    "thinned": "#b08449",
    "shared": "#8f64c8",
    "harmonizer": "#c8558f",
    "not sent": "rgba(128, 134, 145, 0.22)",
}
"""What can stand in a place, and its colour."""


class PlaceRecord(Loose):
    """One place of a receipt's blueprint."""

    layer: Annotated[int, Field(ge=0)]
    harmonizer: Annotated[int, Field(ge=1)] | None = None
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    channels: list[int] | None = None


@dataclass(frozen=True)
class Floor:
    """One floor of the stack, from the bottom up: the shares of 1 are the widths of its two bars."""

    layer: int
    kind: str
    attention: float
    feed: float
    text: str


def floors(places: Sequence[PlaceRecord], split: Split, sent: Sent | None, layers: int = 0) -> list[Floor]:
    """The stack of a model whose middle's blueprint is `places`, with what its bundle says of full sizes.

    Without `sent` widths are against the largest in the blueprint. `layers` is how many the model's middle
    has; without it, those above the last one named are not known.
    """
    full = _Full.of(places, sent)
    found = {position: _floor(position, place, full) for position, place in _positions(places, split)}
    last = max([*found, split.bottom + layers - 1])
    middle = [found.get(at) or Floor(at, "not sent", 1, 1, f"layer {at}: not sent")
              for at in range(split.bottom, last + 1)]  # fmt: skip
    ends = [*range(split.bottom), *range(last + 1, last + 1 + split.top)]
    adapter = [Floor(at, "adapter", 1, 1, f"layer {at}: adapter, sent as it is") for at in ends]
    return sorted([*middle, *adapter], key=lambda floor: floor.layer)


def drawing(stack: Sequence[Floor]) -> Figure:
    """The stack, its bottom at the bottom: attention's ranks to the left, channels to the right."""
    layout = layout_of(height=_FLOOR * len(stack) + 120, showlegend=True)
    layout["margin"] |= {"t": 100, "b": 8}
    layout["legend"] |= {"y": 1.0, "yref": "container", "yanchor": "top"}
    lanes = (("xaxis", "attention", [0, 0.485]),
             ("xaxis2", "feed-forward", [0.515, 1]))  # fmt: skip
    for axis, title, domain in lanes:
        layout[axis] = layout["xaxis"] | {"domain": domain, "range": [0, 1], "side": "top", "showgrid": False}
        layout[axis] |= {"tickvals": [0, 0.5, 1], "ticktext": ["0", "½", "1"], "title": {"text": title}}
    layout["xaxis2"] |= {"anchor": "y"}
    numbers = [floor.layer for floor in stack]
    layout["yaxis"] |= {"range": [min(numbers) - 0.7, max(numbers) + 0.7], "showgrid": False, "dtick": 1}
    layout["yaxis"] |= {"tickvals": numbers, "ticktext": [str(n) for n in numbers], "ticklabelstandoff": 6}
    layout |= {"barmode": "overlay", "bargap": 0.2}
    traces = [_bars(stack, kind, lane) for kind in KINDS for lane in ("attention", "feed")]
    return drawn([trace for trace in traces if trace["y"]], layout)


def in_words(stack: Sequence[Floor]) -> str:
    """The stack in a sentence."""
    counts = {kind: sum(floor.kind == kind for floor in stack) for kind in list(KINDS)[1:]}
    words = {
        "kept whole": "stand whole",
        "thinned": "are thinned",
        "shared": "are another layer’s double",
        "harmonizer": "are harmonizers",
        "not sent": "are not there at all",
    }
    parts = [f"{count} {words[kind]}" for kind, count in counts.items() if count]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    return f"Of the middle’s {sum(counts.values())} layers, {listed}."


@dataclass(frozen=True)
class _Full:
    """The sizes that shares are taken of."""

    ranks: Mapping[str, int]
    width: int | None
    states: int

    @classmethod
    def of(cls, places: Sequence[PlaceRecord], sent: Sent | None) -> _Full:
        if sent:
            return cls(sent.ranks, sent.width, sent.states)
        ranks: dict[str, int] = {}
        for place in places:
            for name, rank in place.ranks.items():
                ranks[name] = max(rank, ranks.get(name, 0))
        width = max((len(place.channels) for place in places if place.channels is not None), default=None)
        return cls(ranks, width, max((place.harmonizer or 0 for place in places), default=0))


def _positions(places: Sequence[PlaceRecord], split: Split) -> list[tuple[int, PlaceRecord]]:
    """Where in the model each place stands: by its layer where none stands twice, else in their order."""
    numbers = [place.layer for place in places]
    if all(a < b for a, b in pairwise(numbers)) and numbers[0] >= split.bottom:
        return list(zip(numbers, places, strict=True))
    return [(split.bottom + i, place) for i, place in enumerate(places)]


def _floor(position: int, place: PlaceRecord, full: _Full) -> Floor:
    where = f"layer {position}"
    if place.harmonizer:
        width = place.harmonizer / max(full.states, place.harmonizer)
        return Floor(position, "harmonizer", width, 0, f"{where}: a harmonizer of rank {place.harmonizer}")
    parts, kind = [], "kept whole"
    attention = feed = 1.0
    if place.ranks:
        kind, attention = "thinned", _rank_share(place.ranks, full.ranks)
        parts.append(f"{len(place.ranks)} factored matrices, ranks {_range(list(place.ranks.values()))}")
    inner = [min(1.0, rank / full.states) for name, rank in place.ranks.items() if name not in full.ranks]
    if inner:  # the feed-forward's; their full rank is the states' width
        feed = mean(inner)
    if place.channels is not None:
        kind, feed = "thinned", min(1.0, len(place.channels) / max(1, full.width or len(place.channels)))
        parts.append(f"{len(place.channels)} channels" + (f" of {full.width}" if full.width else ""))
    if place.layer != position:
        kind = "shared"
        parts.insert(0, f"layer {place.layer} stands here")
    return Floor(position, kind, attention, feed, f"{where}: {'; '.join(parts) or 'kept whole'}")


def _rank_share(ranks: Mapping[str, int], full: Mapping[str, int]) -> float:
    """The mean over attention's linears, those in one piece counting as whole."""
    shares = [min(1.0, ranks.get(name, rank) / rank) for name, rank in full.items()]
    return mean(shares) if shares else 1.0


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _bars(stack: Sequence[Floor], kind: str, lane: str) -> dict[str, object]:
    floors_of_kind = [floor for floor in stack if floor.kind == kind]
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "meta": kind,
        "legendgroup": kind,
        "showlegend": lane == "attention",
        "xaxis": "x" if lane == "attention" else "x2",
        "x": [getattr(floor, lane) for floor in floors_of_kind],
        "y": [floor.layer for floor in floors_of_kind],
        "marker": {"color": KINDS[kind]},
        "hovertext": [floor.text for floor in floors_of_kind],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
