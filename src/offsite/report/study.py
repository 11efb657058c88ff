"""One study: methods on equal budgets, tasks and seeds, their five rows as means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Annotated, Any

from pydantic import Field

from offsite.errors import UserError
from offsite.report.figures import Figure, band, drawn, escaped, layout_of, limits
from offsite.report.part import Chapter, Loose, PageTable, Part, Shown, number, read, record_block
from offsite.results.measures import NLL, Measure, measures
from offsite.results.schema import ROWS, Score
from offsite.results.statistics import Estimate, SeedMean, gain_over_seeds, over_seeds

_LANE = 58  # pixels: a name, and three dots under it
_ENDS, _EMULATOR = ROWS[:2], ROWS[2:]


class Run(Loose):
    """One row or more of one method (none: of the model itself) on one task with one seed."""

    method: str
    task: str
    seed: int = 0
    keep: float | None = None
    stored: float | None = None
    zero_shot: Score | None = None
    fine_tuned: Score | None = None
    emulator_zero_shot: Score | None = None
    emulator_tuned: Score | None = None
    plugged_in: Score | None = None


class StudyFile(Loose):
    """What a page shows of a study's results.json."""

    runs: Annotated[list[Run], Field(min_length=1)]
    notes: list[str] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    call: str | None = None
    versions: dict[str, str] | None = None
    seed: int | list[int] | None = None
    date: str | None = None
    machine: str | None = None


@dataclass(frozen=True)
class Group:
    """The runs of one method and budget on one task."""

    method: str
    keep: float | None  # None: the method's knobs alone say how much stays
    runs: tuple[Run, ...]
    gain: SeedMean | None
    """How much of fine-tuning's fall of the nll plugged in reaches, by seed and then the mean."""

    @property
    def stored(self) -> float:
        """Of the middle, on average."""
        stored = [run.keep if run.stored is None else run.stored for run in self.runs]
        return mean(share for share in stored if share is not None)

    @property
    def budget(self) -> float:
        """What was asked for, or else stored."""
        return self.stored if self.keep is None else self.keep

    @property
    def seeds(self) -> int:
        """How many runs."""
        return len(self.runs)


def study(data: Mapping[str, Any]) -> Part:
    """The part about a study's `results.json`: `runs` and, where they are known, how they came about.

    Raises a UserError where it has another shape.
    """
    found = read(StudyFile, data, "This study", "`offsite compare`")
    groups = {task: _groups(found, task) for task in dict.fromkeys(run.task for run in found.runs)}
    if not any(groups.values()):
        raise UserError("This study cannot be reported: no run of any method is in it yet; let it run on.")
    main = max(groups, key=lambda task: len(groups[task]))
    return Part(
        title=f"Study: {', '.join(groups)}",
        overline="Offsite tuning, a study" + (f" · {found.date[:10]}" if found.date else ""),
        headline=_headline(main, groups[main]),
        lead=_lead(found),
        facts=_facts(found, groups),
        chapters=[
            Chapter("The five rows", rows=True, notes=[_NOTE, *found.notes]),
            *(_chapter(found, task, groups[task]) for task in groups if groups[task]),
        ],
        block=record_block(found.model_dump(), _knobs(found.recipe)) if found.call else "",
    )


_NOTE = (
    "Each lane is one method on one budget: the share of the middle’s parameters that is stored. Bars show one "
    "standard error: over seeds with caps, over questions, of a single seed, without. The shaded band runs "
    "from zero-shot to fine-tuned."
)


def _groups(found: StudyFile, task: str) -> list[Group]:
    """In the order of the runs, which is that of the table too."""
    apart: dict[tuple[str, float | None], list[Run]] = {}
    for run in found.runs:
        if run.task == task and run.method and (run.keep, run.stored) != (None, None):
            apart.setdefault((run.method, run.keep), []).append(run)
    return [
        Group(method, keep, tuple(runs), _gain(found, task, runs)) for (method, keep), runs in apart.items()
    ]


def _gain(found: StudyFile, task: str, runs: Sequence[Run]) -> SeedMean | None:
    return gain_over_seeds(
        [
            *(_end(found, task, row.key, run.seed) for row in _ENDS),
            NLL.of(run.plugged_in) if run.plugged_in else None,
        ]
        for run in runs
    )


def _end(found: StudyFile, task: str, row: str, seed: int) -> Estimate | None:
    """The nll of the model's row with that seed."""
    runs = [run for run in found.runs if (run.task, run.seed) == (task, seed)]
    return next((NLL.of(score) for run in runs if (score := getattr(run, row))), None)


def _mean(runs: Sequence[Run], row: str, measure: Measure) -> SeedMean | None:
    return over_seeds([value for run in runs if (score := getattr(run, row)) and (value := measure.of(score))])


def _headline(task: str, groups: Sequence[Group]) -> str:
    known = [group for group in groups if group.gain]
    if not known:
        return f"{len(groups)} emulators on {task}; fine-tuning gains nothing to hold them against."
    budgets = [round(group.budget, 2) for group in known]
    at = max(sorted(set(budgets)), key=budgets.count)  # the more is kept, the easier: compared on one budget
    known = [group for group, budget in zip(known, budgets, strict=True) if budget == at]
    best = max(known, key=lambda g: g.gain.value if g.gain else -math.inf)
    assert best.gain is not None
    of = f", the most of {len(known)} methods on that budget" if len(known) > 1 else ""
    reached = best.gain.show(0, 100)
    return f"On {task}, {best.method} at keep {at:.2f} reaches {reached}% of what fine-tuning gains{of}."


def _lead(found: StudyFile) -> str:
    seeds = len({run.seed for run in found.runs})
    runs = sum(bool(run.method) for run in found.runs)
    return f"{runs} runs over {seeds} seed{'s' if seeds > 1 else ''}."


def _facts(found: StudyFile, groups: Mapping[str, Sequence[Group]]) -> dict[str, str]:
    keeps = sorted({round(group.budget, 3) for each in groups.values() for group in each})
    methods = dict.fromkeys(group.method for each in groups.values() for group in each)
    few = len(methods) <= 4
    facts = {
        "Methods": ", ".join(methods) if few else str(len(methods)),
        "Keep": ", ".join(f"{keep:g}" for keep in keeps),
    }
    model = found.recipe.get("model")
    return ({"Model": str(model)} if model else {}) | facts | {"Tasks": ", ".join(groups)}


def _knobs(recipe: Mapping[str, Any]) -> dict[str, object]:
    return {name: value for name, value in recipe.items() if value not in (None, {}, [])}


def _chapter(found: StudyFile, task: str, groups: Sequence[Group]) -> Chapter:
    scores = [
        cell for group in groups for run in group.runs for row in _EMULATOR if (cell := getattr(run, row.key))
    ]
    ends = [run for run in found.runs if run.task == task]
    shown = [
        Shown(
            measure.caption,
            _lanes(groups, ends, measure),
            f"{measure.caption} of each method on {task}; the table holds the numbers",
            measure.hint,
        )
        for measure in measures(scores)
    ]
    counts = {cell.n for cell in scores if cell.n}
    of = "questions" if any(score.acc is not None for score in scores) else "texts"
    asked = [f"{', '.join(map(str, sorted(counts)))} {of}."] if counts else []
    table = _table(groups, ends, measures(scores))
    return Chapter(task, notes=asked, figures=shown, table=table, after=_AFTER)


_AFTER = (
    "Each cell holds what the figures show, in their order. ± is one standard error over seeds; †: over "
    "questions, for there is one seed, or all give the same. Gain is the share of fine-tuning’s fall of the "
    "nll that plugged in reaches; a dash stands where fine-tuning lowers the nll by less than its error, or a "
    "run failed. The further emulator tuned lies behind plugged in, the less use a stolen emulator is."
)


def _lanes(groups: Sequence[Group], ends: Sequence[Run], measure: Measure) -> Figure:
    """A lane for each group with a dot for each of its rows; the model's own rows as lines through all."""
    edges = {row.key: value for row in _ENDS if (value := _mean(ends, row.key, measure))}
    layout = layout_of(height=_LANE * len(groups) + 44, showlegend=False)
    lines = [
        _through(row.name, row.key, row.colour, edges[row.key], len(groups), measure.digits)
        for row in _ENDS
        if row.key in edges
    ]
    dots = [_dots(groups, row, place, measure) for place, row in enumerate(_EMULATOR)]
    dots = [trace for trace in dots if trace["x"]]
    reach = [x + side * e for t in dots for x, e in zip(t["x"], t["error_x"]["array"], strict=True)
             for side in (-1, 1)]  # fmt: skip
    layout["xaxis"] |= {"range": limits([*reach, *(edge.value for edge in edges.values())])}
    layout["yaxis"] |= {"range": [len(groups) - 0.45, -0.55], "visible": False}
    layout["shapes"] = [*band({key: edge.value for key, edge in edges.items()}), *_rules(len(groups))]
    layout["annotations"] = [_name(group, place) for place, group in enumerate(groups)]
    return drawn([*lines, *dots], layout)


def _dots(groups: Sequence[Group], row: Any, place: int, measure: Measure) -> Figure:
    known = [(i, group, value) for i, group in enumerate(groups)
             if (value := _mean(group.runs, row.key, measure))]  # fmt: skip
    hovers = [f"{escaped(group.method)}, keep {group.stored:.2f}, {_seeds(group)}<br>"
            f"{row.name}: {number(value, measure.digits)}" for _, group, value in known]  # fmt: skip
    several = bool(known) and all(group.seeds > 1 for _, group, _ in known)
    return {
        "type": "scatter",
        "mode": "markers",
        "meta": row.key,
        "name": row.name,
        "x": [value.value for *_, value in known],
        "y": [i + 0.02 + 0.15 * place for i, *_ in known],
        "error_x": {
            "type": "data",
            "array": [value.stderr or 0.0 for *_, value in known],
            "color": row.colour,
            "thickness": 1.75 if several else 1,
            "width": 3 if several else 0,
        },
        "marker": {"color": row.colour, "size": 10 if row.key == "plugged_in" else 8},
        "hovertext": hovers,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _through(name: str, key: str, colour: str, edge: Estimate, lanes: int, digits: int) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": key,
        "name": name,
        "x": [edge.value, edge.value],
        "y": [-0.55, lanes - 0.45],
        "line": {"color": colour, "width": 1.5},
        "hovertemplate": f"{name}: {number(edge, digits)}<extra></extra>",
    }


def _name(group: Group, place: int) -> Figure:
    text = f"<b>{escaped(group.method, 34)}</b> {group.stored:.2f}"
    where = {"xref": "paper", "x": 0, "xanchor": "left", "y": place - 0.32, "yanchor": "middle"}
    return where | {"text": text, "showarrow": False, "font": {"size": 12}}


def _rules(lanes: int) -> list[Figure]:
    """A thin line between two lanes."""
    line = {"color": "rgba(128, 134, 145, 0.3)", "width": 1}
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "line": line}
    return [across | {"y0": place + 0.5, "y1": place + 0.5} for place in range(lanes - 1)]


def _seeds(group: Group) -> str:
    return f"{group.seeds} seed{'s' if group.seeds > 1 else ''}"


def _table(groups: Sequence[Group], ends: Sequence[Run], shown: Sequence[Measure]) -> PageTable:
    """A line for each group under those of the model itself; in a cell a line for each measure."""
    head = ["Method", "Keep", "Seeds", *(row.name for row in _EMULATOR), "Gain, %"]
    model_rows = [_of_model(row.name, row.key, ends, shown) for row in _ENDS]
    gains = [group.gain.value if group.gain else -math.inf for group in groups]
    best = gains.index(max(gains))
    bold = frozenset([len(model_rows) + best]) if math.isfinite(gains[best]) else frozenset()
    return PageTable(head, [*model_rows, *(_cells(group, shown) for group in groups)], bold)


def _cells(group: Group, shown: Sequence[Measure]) -> list[str]:
    values = [_lines(group.runs, row.key, shown) for row in _EMULATOR]
    return [group.method, f"{group.stored:.2f}", str(group.seeds), *values, number(group.gain, 1, 100)]


def _of_model(name: str, key: str, ends: Sequence[Run], shown: Sequence[Measure]) -> list[str]:
    """The model's own row: it stands under plugged in, for it is of the full model."""
    seeds = sum(getattr(run, key) is not None for run in ends)
    return [name, "", str(seeds), "", "", _lines(ends, key, shown), ""]


def _lines(runs: Sequence[Run], key: str, shown: Sequence[Measure]) -> str:
    return "\n".join(number(_mean(runs, key, measure), measure.digits) for measure in shown)
