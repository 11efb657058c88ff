"""One training of harmonizers and scores as one HTML file, for the model owner alone: it names layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from offsite.files.atomic import write_text
from offsite.report.figures import Figure, drawn, layout_of, over_steps, shades
from offsite.report.page import render
from offsite.report.part import Chapter, Part, Shown

_TRAINED, _JUDGED, _ZERO = "#3f7fc8", "#1d9475", "#808691"
_BAR = 20  # pixels: a bar with its number beside


PRIVATE = (
    "It names layers of the model by their importance, and a data owner could tell from it what an emulator "
    "lacks: it is not to be sent."
)


def write_training(
    path: Path,
    *,
    title: str,
    layers: Sequence[int],
    loss: Sequence[float],
    judged: Sequence[float],
    scores: Sequence[Sequence[float]],
    facts: Mapping[str, str],
) -> Path:
    """Write the report of one training, as `training` has it, to `path`, and return that.

    Raises a UserError where plotly is not installed; an OSError passes through, and nothing half-written stays.
    """
    part = training(title=title, layers=layers, loss=loss, judged=judged, scores=scores, facts=facts)
    write_text(path, render([part]))
    return path


def training(
    *,
    title: str,
    layers: Sequence[int],
    loss: Sequence[float],
    judged: Sequence[float],
    scores: Sequence[Sequence[float]],
    facts: Mapping[str, str],
) -> Part:
    """The part about one training.

    `loss` (steps) is what harmonizers were trained to make small on each batch, in whatever unit; `judged`
    (steps) is the mean loss of the stacks that were held against each other, nats per token; `scores` (steps,
    layers) are those after each step, of the `layers` by their numbers in the model, from the bottom up.

    `title` and `facts` are shown as they are.
    """
    assert len(loss) == len(judged) == len(scores) > 0, "one of each for each step"
    assert all(len(step) == len(layers) > 0 for step in scores), "one score for each layer"
    run = _Run(layers, loss, judged, scores)
    return Part(
        title=f"Harmonizers: {title}",
        overline=f"Offsite tuning, training harmonizers · {title}",
        headline=run.headline,
        lead=run.fall,
        facts=facts,
        chapters=_chapters(run),
        private=PRIVATE,
    )


def _chapters(run: _Run) -> list[Chapter]:
    stacks = "Loss of mixed stacks on held-out text against steps"
    states = Shown("Loss on held-out text, nats per token", _judged(run), stacks, "lower is better")
    trained = Shown("Training loss", _trained(run), "Training loss against steps", "lower is better")
    moving = Shown("Score", _moving(run), "Score of each layer against steps", depths=True)
    order = "Importance of each layer, in the order of the stack; the text below holds the order"
    importance = Shown("Score after the last step", _importance(run), order, "higher stays longer")
    return [
        Chapter("Loss of the mixed stacks", notes=[_MIXED], figures=[states]),
        Chapter("What harmonizers are trained on", text=[run.end], notes=[_STATES], figures=[trained]),
        Chapter("The scores moving", text=[run.settled], notes=[_LINES], figures=[moving]),
        Chapter("Importance by layer", text=[run.reading], notes=[_ORDER], figures=[importance]),
        Chapter("The order in which they give way", text=[" · ".join(map(str, run.order))]),
    ]


_MIXED = (
    "In a mixed stack harmonizers replace about half of the layers, drawn anew each time. The loss of several "
    "stacks on the same held-out text sets the scores: the lower, the more for the layers that stayed."
)
_STATES = (
    "Distance of the mixed stacks’ hidden states from the full model’s (relative squares), or their loss, "
    "weighted by the knobs lm and align; batches differ, so the dots scatter."
)
_LINES = "Each line is a layer; point at one to see its number."
_ORDER = (
    "The higher a layer’s score, the more a mixed stack loses where a harmonizer replaces it. Layers are "
    "replaced from the lowest score up, as many as the budget asks for."
)


@dataclass(frozen=True)
class _Run:
    """What happened, and sentences about it."""

    layers: Sequence[int]
    loss: Sequence[float]
    judged: Sequence[float]
    scores: Sequence[Sequence[float]]

    @property
    def order(self) -> list[int]:
        """The numbers of the layers from the least important; of equals the lower first."""
        return [self.layers[place] for place in _ascending(self.scores[-1])]

    @property
    def equal(self) -> bool:
        """Whether the scores say nothing of which layer matters more."""
        return len(set(self.scores[-1])) == 1

    @property
    def headline(self) -> str:
        if self.equal:
            return "No layer was found to matter more than another."
        return f"{_named(self.order[: self._few])} can go first; layer {self.order[-1]} matters most."

    @property
    def fall(self) -> str:
        """How the loss on held-out text went."""
        first, last = _ends(self.judged)
        if first is None or last is None:
            return "What mixed stacks lose on held-out text was not a finite number."
        change = f"stayed at {last:.2f}"
        if last != first:
            change = f"{'fell' if last < first else 'rose'} from {first:.2f} to {last:.2f}"
        steps = f"{len(self.judged)} step{'s' if len(self.judged) > 1 else ''}"
        where = "With about half of the layers replaced, the loss on held-out text"
        return f"{where} {change} nats a token in {steps}."

    @property
    def end(self) -> str:
        """How what is trained on went."""
        first, last = _ends(self.loss)
        if first is None or last is None:
            return "What harmonizers are trained on did not stay a finite number."
        change = f"went from {first:.3f} to {last:.3f}, by the medians of a tenth of the steps"
        return f"What harmonizers are trained on {change}."

    @property
    def reading(self) -> str:
        """The least and the most important layers."""
        if self.equal:
            return "All layers have the same score."
        least, most = self.order[: self._few], self.order[: -self._few - 1 : -1]
        return (
            f"{_named(least)} {_verb('matter', least)} least and {_verb('give', least)} way first; "
            f"{_named(most, 'layer')} {_verb('matter', most)} most and {_verb('stay', most)} longest."
        )

    @property
    def settled(self) -> str:
        """Since when the layers that go first have been those that they are."""
        count = max(1, round(len(self.layers) / 4))
        if self.equal or count == len(self.layers):
            return "The scores put no layer before another."
        first = [set(_ascending(step)[:count]) for step in self.scores]
        since = 1 + max((step for step, one in enumerate(first, 1) if one != first[-1]), default=0)
        which = "layer that goes first has" if count == 1 else f"{count} layers that go first have"
        return f"The {which} been the same since step {since} of {len(first)}."

    @property
    def _few(self) -> int:
        return max(1, min(3, len(self.layers) // 3))


def _judged(run: _Run) -> Figure:
    """What mixed stacks lose on held-out text: the less a stack, the more its layers are rewarded."""
    return _dotted(run.judged, _JUDGED, "Mean of the stacks")


def _trained(run: _Run) -> Figure:
    """What harmonizers are trained on: each batch and smoothed."""
    return _dotted(run.loss, _TRAINED, "Trained batches")


def _dotted(values: Sequence[float], colour: str, name: str) -> Figure:
    dot = {"color": colour, "size": 4, "opacity": 0.75}
    dots = _line(name, values, colour) | {"mode": "markers", "marker": dot}
    middle = _line("Running median", _smooth(values), colour)
    return drawn([dots, middle], _until(len(values), height=300, showlegend=True))


def _moving(run: _Run) -> Figure:
    """The score of each layer over the steps; the most and the least important are named at their ends."""
    colours = shades(len(run.layers))
    traces = [
        _line(f"layer {layer}", [step[place] for step in run.scores], colours[place]) | {"meta": layer}
        for place, layer in enumerate(run.layers)
    ]
    layout = _until(len(run.scores), height=420, showlegend=False)
    order = _ascending(run.scores[-1])
    layout["annotations"] = [] if run.equal else [_tag(run, order[0], -11), _tag(run, order[-1], 11)]
    return drawn(traces, layout)


def _importance(run: _Run) -> Figure:
    """The last scores as bars, in the order of the stack, its bottom at the bottom."""
    scores, names = run.scores[-1], [f"layer {layer}" for layer in run.layers]
    bars: Figure = {
        "type": "bar",
        "orientation": "h",
        "meta": list(run.layers),
        "x": list(scores),
        "y": list(range(len(scores))),
        "marker": {"color": shades(len(scores))},
        "text": [f"{score:z.1f}".replace("-", "−") for score in scores],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": names,
        "hovertemplate": "%{hovertext}: %{x:.2f}<extra></extra>",
    }
    layout = layout_of(height=_BAR * len(scores) + 48, showlegend=False)
    layout["bargap"] = 0.3
    layout["xaxis"] |= {"range": _with_room(scores), "zeroline": True, "zerolinecolor": _ZERO}
    layout["yaxis"] |= {"range": [-0.6, len(scores) - 0.4], "tickvals": bars["y"], "ticktext": names}
    layout["yaxis"] |= {"showgrid": False, "ticklabelstandoff": 10}
    return drawn([bars], layout)


def _line(name: str, values: Sequence[float | None], colour: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines" if len(values) > 1 else "markers",
        "name": name,
        "x0": 1,
        "dx": 1,
        "y": list(values),
        "line": {"color": colour, "width": 1.75},
        "marker": {"color": colour},
        "cliponaxis": False,
        "hovertemplate": f"{name}, step %{{x}}: %{{y:.2f}}<extra></extra>",
    }


def _tag(run: _Run, place: int, shift: int) -> Figure:
    """A layer's number at the end of its line, so many pixels above it."""
    end = {"x": len(run.scores), "y": run.scores[-1][place], "xanchor": "right", "yshift": shift}
    return end | {"text": f"layer {run.layers[place]}", "showarrow": False}


def _until(steps: int, height: int, showlegend: bool) -> Figure:
    layout = over_steps(height, showlegend)
    layout["xaxis"] |= {"range": [0, steps]}
    return layout


def _smooth(values: Sequence[float]) -> list[float | None]:
    """The running median over about a tenth of the steps."""
    reach = min(15, len(values) // 20)
    return [_middle(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _ends(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The medians of the first and of the last tenth of the steps."""
    tenth = max(1, len(values) // 10)
    return _middle(values[:tenth]), _middle(values[-tenth:])


def _middle(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else None


def _ascending(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=scores.__getitem__)


def _with_room(scores: Sequence[float]) -> list[float]:
    """From the lowest to the highest, zero within, with room for the numbers at the ends."""
    low, high = min(0.0, *scores), max(0.0, *scores)
    room = (high - low) * 0.1 or 1.0
    return [low - room * (low < 0), high + room * (high > 0 or low == 0)]


def _named(layers: Sequence[int], word: str = "Layer") -> str:
    """As in "Layers 13, 14 and 12"."""
    if len(layers) == 1:
        return f"{word} {layers[0]}"
    return f"{word}s {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _verb(word: str, layers: Sequence[int]) -> str:
    return word if len(layers) > 1 else f"{word}s"
