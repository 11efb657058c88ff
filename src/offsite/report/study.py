"""One study: methods on equal budgets, tasks and seeds, their five rows as means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from offsite.errors import UserError
from offsite.report.figures import Figure, band, drawn, escaped, layout_of, limits
from offsite.report.loss_and_gap import loss_and_gap
from offsite.report.part import Chapter, Loose, PageTable, Part, Shown, number, read, record_block
from offsite.results.measures import ACCURACY, CHOICE, Measure, judged_by, measures, nothing_to_keep
from offsite.results.runs import Group, Run, grouped
from offsite.results.schema import ROWS, RowKey, RowLabel
from offsite.results.statistics import Estimate

_LANE = 58  # pixels: a name, and three dots under it
_ENDS, _EMULATOR = ROWS[:2], ROWS[2:]


class StudyFile(Loose):
    """What a page shows of a study's results.json."""

    runs: Annotated[list[Run], Field(min_length=1)]
    notes: list[str] = Field(default_factory=list)
    recipe: dict[str, object] = Field(default_factory=dict)
    call: str | None = None
    versions: dict[str, str] | None = None
    seed: int | list[int] | None = None
    date: str | None = None
    machine: str | None = None


def study(data: Mapping[str, object]) -> Part:
    """The part about a study's `results.json`: `runs` and, where they are known, how they came about.

    Raises a UserError where it has another shape.
    """
    found = read(StudyFile, data, "This study", "`offsite compare`")
    groups = {
        task: _methods([run for run in found.runs if run.task == task])
        for task in dict.fromkeys(run.task for run in found.runs)
    }
    if not any(groups.values()):
        raise UserError("This study cannot be reported: no run of any method is in it yet; let it run on.")
    asked = [task for task in groups if groups[task]]
    answered = [task for task in asked if _answered(found.runs, task)]
    measure, judged = _judged(found.runs, answered or asked)
    every = _methods(found.runs)
    return Part(
        title=f"Study: {', '.join(groups)}",
        overline="Offsite tuning, a study" + (f" · {found.date[:10]}" if found.date else ""),
        headline=_headline(every, measure, judged),
        lead=_lead(found, every, measure, judged),
        facts=_facts(found, groups),
        chapters=[
            *loss_and_gap(every, measure, judged, answered),
            Chapter("The five rows", rows=True, notes=[_NOTE, *found.notes]),
            *(_chapter(task, groups[task], *_judged(found.runs, [task])) for task in asked),
        ],
        block=record_block(found.model_dump(), _knobs(found.recipe)) if found.call else "",
    )


_NOTE = (
    "Each lane is one method on one budget: the share of the middle’s parameters that is stored. Bars show one "
    "standard error: over seeds with caps, over questions, of a single seed, without. The shaded band runs "
    "from zero-shot to fine-tuned."
)


def _methods(runs: Sequence[Run]) -> list[Group]:
    """In the order of the runs, which is that of the table too."""
    return [
        group for group in grouped(runs)
        if group.method and any((run.keep, run.stored) != (None, None) for run in group.runs)
    ]  # fmt: skip


def _answered(runs: Sequence[Run], task: str) -> bool:
    return any(score.acc is not None for run in runs if run.task == task for score in run.scores.values())


def _judged(runs: Sequence[Run], tasks: Sequence[str]) -> tuple[Measure, list[str]]:
    return judged_by([{run.task: score} for run in runs for score in run.scores.values()], tasks)


def _headline(groups: Sequence[Group], measure: Measure, tasks: Sequence[str]) -> str:
    on = " and ".join(tasks)
    if fall := groups[0].itself.nothing_gained(tasks, measure):
        return nothing_to_keep(fall, measure, f" on {on}")
    losses = [(group, loss) for group in groups if (loss := group.loss(tasks, measure))]
    if not losses:
        return f"{len(groups)} emulators on {on}; what they lose is not known, for a row of each lacks."
    budgets = [round(group.budget, 2) for group, _ in losses]
    at = max(sorted(set(budgets)), key=budgets.count)  # the more is kept, the easier: compared on one budget
    losses = [each for each, budget in zip(losses, budgets, strict=True) if budget == at]
    best, loss = min(losses, key=lambda each: each[1].value)
    of = f", the least of {len(losses)} methods on that budget" if len(losses) > 1 else ""
    gap = best.gap(tasks, measure)
    lacks = f"; its gap is {_in_words(gap, measure)}" if gap else ""
    return f"On {on}, {best.method} at keep {at:.2f} loses {_in_words(loss, measure)}{of}{lacks}."


def _in_words(value: Estimate, measure: Measure) -> str:
    return f"{value.show(measure.digits)} {value.spread(measure.digits)}".strip() + f" {measure.unit}"


def _lead(found: StudyFile, groups: Sequence[Group], measure: Measure, tasks: Sequence[str]) -> str:
    seeds = len({run.seed for run in found.runs})
    runs = sum(bool(run.method) for run in found.runs)
    fall = groups[0].itself.fall(tasks, measure)
    by = "choice nll" if measure is CHOICE else "answer nll"
    gains = f" Fine-tuning gains {_in_words(fall, measure)} of {by} over zero-shot." if fall else ""
    return f"{runs} runs over {seeds} seed{'s' if seeds > 1 else ''}.{gains}"


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


def _knobs(recipe: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in recipe.items() if value not in (None, {}, [])}


def _chapter(task: str, groups: Sequence[Group], measure: Measure, tasks: Sequence[str]) -> Chapter:
    scores = [
        cell for group in groups for run in group.runs for row in _EMULATOR if (cell := run.scores.get(row.key))
    ]
    shown = [
        Shown(
            each.caption,
            _lanes(groups, task, each),
            f"{each.caption} of each method on {task}; the table holds the numbers",
            each.hint,
        )
        for each in measures(scores)
    ]
    counts = {cell.n for cell in scores if cell.n}
    of = "questions" if any(score.acc is not None for score in scores) else "texts"
    notes = [f"{', '.join(map(str, sorted(counts)))} {of}."] if counts else []
    if fall := groups[0].itself.nothing_gained(tasks, measure):
        notes.append(nothing_to_keep(fall, measure))
    table = _table(groups, task, measure, measures(scores))
    return Chapter(task, notes=notes, figures=shown, table=table, after=_AFTER)


_AFTER = (
    "Loss: how much worse plugged in is than fine-tuned; gap: how much worse emulator tuned is than plugged "
    "in, so how little use a stolen emulator is; both in nats, then in points of accuracy where there is one, "
    "paired over the questions. The other cells hold what the figures show, in their order. ± is one standard "
    "error over seeds; †: over questions, for there is one seed, or all give the same. Gain is the share of "
    "what fine-tuning gains in nats that plugged in keeps; a dash stands where that is nothing beyond its "
    "error, or a run failed."
)


def _lanes(groups: Sequence[Group], task: str, measure: Measure) -> Figure:
    """A lane for each group with a dot for each of its rows; the model's own rows as lines through all."""
    itself = groups[0].itself
    edges = {row.key: value for row in _ENDS if (value := itself.row(row.key, [task], measure))}
    layout = layout_of(height=_LANE * len(groups) + 44, showlegend=False)
    lines = [
        _through(row.name, row.key, row.colour, edges[row.key], len(groups), measure.digits)
        for row in _ENDS
        if row.key in edges
    ]
    dots = [_dots(groups, row, place, task, measure) for place, row in enumerate(_EMULATOR)]
    dots = [trace for trace in dots if trace["x"]]
    reach = [x + side * e for t in dots for x, e in zip(t["x"], t["error_x"]["array"], strict=True)
             for side in (-1, 1)]  # fmt: skip
    layout["xaxis"] |= {"range": limits([*reach, *(edge.value for edge in edges.values())])}
    layout["yaxis"] |= {"range": [len(groups) - 0.45, -0.55], "visible": False}
    layout["shapes"] = [*band({key: edge.value for key, edge in edges.items()}), *_rules(len(groups))]
    layout["annotations"] = [_name(group, place) for place, group in enumerate(groups)]
    return drawn([*lines, *dots], layout)


def _dots(groups: Sequence[Group], row: RowLabel, place: int, task: str, measure: Measure) -> Figure:
    known = [(i, group, value) for i, group in enumerate(groups)
             if (value := group.row(row.key, [task], measure))]  # fmt: skip
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


def _table(groups: Sequence[Group], task: str, measure: Measure, shown: Sequence[Measure]) -> PageTable:
    """A line for each group under those of the model itself; in a cell a line for each measure."""
    head = ["Method", "Keep", "Seeds", "Loss", "Gap", *(row.name for row in _EMULATOR), "Gain, %"]
    itself = groups[0].itself
    model_rows = [
        [row.name, "", str(sum(row.key in run.scores for run in itself.runs)), *[""] * 4,
         _lines(itself, row.key, task, shown), ""]
        for row in _ENDS
    ]  # fmt: skip
    rows = [_cells(group, task, measure, shown) for group in groups]
    losses = [loss.value if (loss := group.loss([task], measure)) else math.inf for group in groups]
    best = losses.index(min(losses))
    bold = frozenset([len(model_rows) + best]) if math.isfinite(losses[best]) else frozenset()
    return PageTable(head, [*model_rows, *rows], bold)


def _cells(group: Group, task: str, measure: Measure, shown: Sequence[Measure]) -> list[str]:
    by = [measure, *(each for each in shown if each is ACCURACY)]
    differences = [
        "\n".join(number(of([task], each), each.digits) for each in by) for of in (group.loss, group.gap)
    ]
    values = [_lines(group, row.key, task, shown) for row in _EMULATOR]
    gain = number(group.gain([task], measure), 1, 100)
    return [group.method, f"{group.stored:.2f}", str(group.seeds), *differences, *values, gain]


def _lines(group: Group, row: RowKey, task: str, shown: Sequence[Measure]) -> str:
    """The model's own rows stand under plugged in, for they are of the full model."""
    return "\n".join(number(group.row(row, [task], measure), measure.digits) for measure in shown)
