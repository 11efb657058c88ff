"""Gradient fidelity against `keep`, method by method, as JSON and as a figure.

    python benchmarks/fidelity.py MODEL --methods uniform crash gradot-paper --keeps 0.5 0.7 0.9

For each method and budget: the cosine and the relative error between the adapter's gradient through the
emulator and through the full model, and the gap of their losses, on the end of a text of which methods read the
beginning. Each point is written as soon as it is there; run again, only what lacks is computed, and the figure
is drawn of all that is in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.data import tasks
from offsite.errors import UserError
from offsite.files.atomic import write_text
from offsite.model import loading
from offsite.model.split import Split
from offsite.owner.build import build, keep_of
from offsite.owner.compress import profile_of
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.methods import method_named
from offsite.owner.methods.base import Method
from offsite.owner.profile import Profile
from offsite.provenance import record

Point = dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """What all points have in common."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    text: str
    profiles: Path | None

    def profile(self, method: Method) -> Profile:
        """From the folder of profiles if it is there, else made now (and kept there)."""
        apart = [str(method.knobs[knob]) for knob in ("norm", "seed") if knob in method.knobs]
        usual = type(method)().knobs
        trained = [knob for knob in ("steps", "rank", "lr") if method.knobs.get(knob) != usual.get(knob)]
        apart += [f"{knob}={method.knobs[knob]}" for knob in trained]
        folder = self.profiles and self.profiles / "-".join([method.name, *apart])
        if folder and folder.exists():
            found = Profile.load(folder)
            found.check_model(self.model)
            found.check_split(Split())
            method.check(found)
            return found
        found = profile_of(self.model, self.tokenizer, method, Split(), text=self.text)
        if folder:
            found.save(folder, text=self.text)
        return found


def named(spec: str) -> Method:
    """The method of a word such as `gradot:evenly=0`."""
    name, _, knobs = spec.partition(":")
    return method_named(name, [knob for knob in knobs.split(",") if knob])


def measure(asked: argparse.Namespace, missing: list[tuple[str, float]]) -> Iterator[Point]:
    model, tokenizer = loading.load(asked.model)
    owner = Owner(model, tokenizer, asked.text, asked.profiles)
    tokens = held_out(tasks.texts(asked.text), tokenizer, asked.length, asked.blocks)
    profiles: dict[str, Profile] = {}
    for spec, keep in missing:
        method = named(spec)
        if spec not in profiles:
            profiles = {spec: owner.profile(method)}  # one at a time: they can be large
        emulator = build(model, Split(), method.plan(profiles[spec], keep), method=method.name)
        found = fidelity(emulator, model, tokens)
        stored = {"method": spec, "asked": keep, "keep": keep_of(emulator, model)}
        yield stored | asdict(found) | {"loss_gap": found.loss_gap}


def run(asked: argparse.Namespace) -> None:
    about = {name: getattr(asked, name) for name in ("model", "text", "blocks", "length")}
    points: list[Point] = []
    if asked.output.exists():
        before = json.loads(asked.output.read_text(encoding="utf-8"))
        points = before["points"]
        if before["about"] != about:
            raise UserError(f"{asked.output} is about {before['about']}; name another output.")
    for spec in asked.methods:
        named(spec)  # what is misspelt is refused before any work
    done = {(point["method"], point["asked"]) for point in points}
    missing = [(spec, keep) for spec in asked.methods for keep in asked.keeps if (spec, keep) not in done]
    for point in measure(asked, missing) if missing else ():
        points.append(point)
        told = {"about": about, "points": points, "record": record(0)}
        write_text(asked.output, json.dumps(told, indent=2) + "\n")
        print(json.dumps(point))
    if asked.figure:
        write_text(asked.figure, figure(points, about))


# --- the figure -------------------------------------------------------------------------------------------

WIDTH, TOP, BOTTOM, PANEL, TICKS = 900, 64, 236, 290, 34  # in pixels; TICKS: room for the numbers of the y axis
LETTER, ROW = 6.6, 14  # a label's letter is about so wide, and its line so high
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 300" font-family="system-ui, sans-serif"
  font-size="12" role="img" aria-label="{what}">
  <style>
    .bg{{fill:#fbfaf8}}.ink{{fill:#1d1f23}}.mute{{fill:#6a6f78}}.grid{{stroke:#e2e0dc}}.line{{fill:none;stroke-width:2}}
    .halo{{stroke:#fbfaf8;paint-order:stroke;stroke-width:3}}.lead{{stroke-width:1;opacity:.6}}
    {light}
    @media (prefers-color-scheme: dark){{
    .bg{{fill:#17181b}}.ink{{fill:#eceae6}}.mute{{fill:#a0a5ad}}.grid{{stroke:#33363c}}.halo{{stroke:#17181b}}
    {dark}}}
  </style>
  <rect class="bg" width="{width}" height="300" rx="8"/>
{panels}
  <text class="mute" x="{middle}" y="284" text-anchor="middle">{foot}</text>
</svg>
"""
LIGHT = ["#0f7d62", "#b4530a", "#4a55c8", "#a3326e", "#6f6200", "#3b6f9e", "#6a6f78"]
DARK = ["#43c9a5", "#f0954a", "#9aa4ff", "#ef86b8", "#d3c24a", "#7db8e8", "#a0a5ad"]
PANELS = {
    "cosine": "cosine of the gradients (1 is best)",
    "relative_error": "relative error of the gradient (0 is best)",
    "loss_gap": "loss above the model's, nats a token",
}


@dataclass(frozen=True)
class Axes:
    """One panel: where its data fall, in pixels."""

    left: float
    """Of the plot, where the labels of the lines begin."""
    first: float
    """Where the smallest keep stands, right of the labels."""
    right: float
    keeps: tuple[float, float]
    values: list[float]
    """The ticks of the y axis, ascending."""

    def x(self, keep: float) -> float:
        """Where a share of parameters stands."""
        low, high = self.keeps
        return self.first + (keep - low) / ((high - low) or 1) * (self.right - self.first)

    def y(self, value: float) -> float:
        """Where a value stands; the first tick is at the bottom, the last at the top."""
        low, high = self.values[0], self.values[-1]
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)


def figure(points: list[Point], about: dict[str, Any]) -> str:
    """Three panels side by side, a line per method, labelled where it begins."""
    methods = list(dict.fromkeys(point["method"] for point in points))
    what = "Gradient fidelity of emulators against keep, of " + ", ".join(methods)
    where = "{model}, {blocks} held-out blocks of {length} tokens of {text}".format(**about)
    foot = "keep: share of the middle's parameters that the emulator stores. " + where
    return SVG.format(
        width=WIDTH,
        what=escaped(what),
        light=colours(LIGHT),
        dark=colours(DARK),
        panels="\n".join(panel(number, key, points, methods) for number, key in enumerate(PANELS)),
        middle=WIDTH // 2,
        foot=escaped(foot),
    )


def colours(palette: list[str]) -> str:
    return "".join(f".s{i}{{stroke:{colour}}}.f{i}{{fill:{colour}}}" for i, colour in enumerate(palette))


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def panel(number: int, key: str, points: list[Point], methods: list[str]) -> str:
    left = 14 + number * PANEL + TICKS
    keeps = [point["keep"] for point in points]
    gutter = LETTER * max(map(len, methods)) + 14
    ticks = nice([point[key] for point in points], top=1.0 if key == "cosine" else None)
    axes = Axes(left, left + gutter, left + PANEL - TICKS - 16, (min(keeps), max(keeps)), ticks)
    curves = {
        i: sorted((axes.x(p["keep"]), axes.y(p[key])) for p in points if p["method"] == method)
        for i, method in enumerate(methods)
    }
    title = f'  <text class="ink" x="{left}" y="36" font-size="13">{PANELS[key]}</text>'
    lines = [line for i, curve in curves.items() for line in strokes(i % len(LIGHT), curve)]
    return "\n".join([title, *grid(axes), *lines, *labels(axes, methods, curves)])


def nice(values: list[float], top: float | None) -> list[float]:
    """Four to eight round ticks around the `values`, from zero or up to `top`."""
    low, high = min(values), max(values)
    low, high = (low, top) if top is not None else (min(low, 0.0), max(high, 1e-9))
    span = max(high - low, 1e-9)
    step = next(s * 10.0**e for e in range(-10, 10) for s in (1, 2, 5) if span / (s * 10.0**e) <= 5)
    if top is not None:
        count = int(-(-span // step)) or 1
        return [round(top - i * step, 10) for i in range(count, -1, -1)]
    first, last = int(low // step), int(-(-high // step))
    return [round(i * step, 10) for i in range(first, last + 1)]


def grid(axes: Axes) -> Iterator[str]:
    for value in axes.values:
        y = axes.y(value)
        yield f'  <path class="grid" d="M{axes.left:.1f} {y:.1f}H{axes.right:.1f}"/>'
        yield f'  <text class="mute" x="{axes.left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    low, high = axes.keeps
    for tenth in range(11):
        if low - 0.02 <= tenth / 10 <= high + 0.02:
            x = axes.x(tenth / 10)
            at = f'x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle"'
            yield f'  <text class="mute" {at}>{tenth / 10:g}</text>'


def strokes(colour: int, curve: list[tuple[float, float]]) -> Iterator[str]:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in curve)
    yield f'  <path class="line s{colour}" d="{path}"/>'
    for x, y in curve:
        yield f'  <circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def labels(axes: Axes, methods: list[str], curves: dict[int, list[tuple[float, float]]]) -> Iterator[str]:
    """Each method's name left of its line's beginning, moved apart where they would touch."""
    x = axes.first - 12
    for i, y in apart({i: curve[0][1] for i, curve in curves.items()}).items():
        start = curves[i][0]
        colour = i % len(LIGHT)
        yield f'  <path class="lead s{colour}" d="M{x + 3:.1f} {y:.1f}L{start[0] - 4:.1f} {start[1]:.1f}"/>'
        yield (
            f'  <text class="halo f{colour}" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escaped(methods[i])}</text>"
        )


def apart(wanted: dict[int, float]) -> dict[int, float]:
    """Heights a row or more from each other, in the order wanted and near to it."""
    order = sorted(wanted, key=wanted.__getitem__)
    heights = [wanted[i] for i in order]
    for _ in range(200):
        for low, (a, b) in enumerate(pairwise(list(heights))):
            short = ROW - (b - a)
            if short > 0:
                heights[low] -= short / 2
                heights[low + 1] += short / 2
    return dict(zip(order, (min(max(h, TOP - 6), BOTTOM + 6) for h in heights), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a folder or a named model")
    parser.add_argument("--methods", nargs="+", default=["uniform", "crash"], help="as `crash:share=false`")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--text", default="wikipedia", help="wikipedia, wikitext2 or a file")
    parser.add_argument("--blocks", type=int, default=16, help="held-out blocks, from the text's end")
    parser.add_argument("--length", type=int, default=128, help="tokens in a block")
    parser.add_argument(
        "--profiles", type=Path, help="a folder of profiles by method; made ones are kept there"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("fidelity.json"))
    parser.add_argument("--figure", type=Path, help="an SVG to draw")
    run(parser.parse_args())
