"""Scores and plans as tables on a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from offsite.results.measures import ACCURACY, CHOICE, NLL, NORMALISED, Measure
from offsite.results.schema import ROWS, Score

if TYPE_CHECKING:
    from offsite.experiments.frontier import Frontier
    from offsite.experiments.frontier.choose import FrontierPoint
    from offsite.experiments.study import StudyTable
    from offsite.experiments.study.forecast import Forecast, Step


def scores_table(scores: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> Table:
    """One line a task."""
    table = _table("task", notes)
    for task, score in scores.items():
        table.add_row(task, *_cells(score))
    return table


def rows_tables(rows: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> list[Table]:
    """The five rows, a table for each task."""
    tables = []
    for task in next(iter(rows.values())):
        table = _table(task, notes)
        for row in ROWS:
            style = "bold" if row.key == "plugged_in" else ""
            table.add_row(row.name, *_cells(rows[row.key][task]), style=style)
        tables.append(table)
    return tables


def study_table(study: StudyTable) -> Table:
    """The papers' layout; as wide as its numbers are, whatever the screen."""
    table = Table(caption="\n".join(study.notes), caption_justify="left")
    table.add_column(study.head[0], max_width=28)
    for number, name in enumerate(study.head[1:]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for number, (method, line) in enumerate(lines := list(study.groups)):
        ends = number + 1 < len(lines) and lines[number + 1][0] != method
        cells = ("" if cell is None else str(cell) for cell in line)
        table.add_row(*cells, end_section=ends)
    return table


def plan_table(plan: Forecast) -> Table:
    """What is yet to be done, a line for what only the seed tells apart."""
    done = plan.cells - len(plan.todo)
    table = Table(caption=f"{plan.cells} cells in all, {done} of them done. {plan.how}", caption_justify="left")
    table.add_column("to do")
    table.add_column("rows that lack")
    table.add_column("seeds")
    table.add_column("about", justify="right", no_wrap=True)
    alike: dict[tuple[str, str], list[Step]] = {}
    for step in plan.todo:
        alike.setdefault((step.what, ", ".join(step.rows).replace("_", " ")), []).append(step)
    for (what, rows), steps in alike.items():
        known = [step.seconds for step in steps if step.seconds is not None]
        seconds = sum(known) if len(known) == len(steps) else None
        table.add_row(what, rows, ", ".join(str(step.seed) for step in steps), duration(seconds))
    return table


def duration(seconds: float | None) -> str:
    """A time in the two units that matter; nothing for one that is not known."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _table(first: str, notes: Sequence[str]) -> Table:
    table = Table(
        caption="\n".join(notes) or None, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    table.add_column(first, no_wrap=True)
    for name in ("accuracy %", "normalised %", "choice nll", "answer nll", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(score: Mapping[str, Any]) -> tuple[str, ...]:
    read = Score(**score)
    shown = (_cell(measure, read) for measure in (ACCURACY, NORMALISED, CHOICE, NLL))
    return *shown, "–" if read.n is None else str(read.n)


def _cell(measure: Measure, score: Score) -> str:
    found = measure.of(score)  # of a text there is no accuracy
    return f"{found.show(measure.digits)} {found.spread(measure.digits)}".strip() if found else "–"


def frontier_table(found: Frontier) -> Table:
    """One line a point, as narrow as may be."""
    from offsite.experiments.frontier.choose import undominated
    from offsite.experiments.frontier.grid import in_words

    table = Table(
        caption=_CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("")
    table.add_column("settings", min_width=12)
    for name in ("stored", "cosine", "text", "tuned", "plugged in", "loss", "gap"):
        table.add_column(name, justify="right", no_wrap=True)
    best = undominated(found.points)
    for place, point in enumerate(found.points):
        chosen = place == found.chosen
        mark = ">" if chosen else "*" if place in best else ""
        table.add_row(mark, in_words(point.settings), *_figures_of(point), style="bold" if chosen else "")
    return table


_CAPTION = (
    "> chosen; * scored, and none beats it in both loss and gap; –: not scored, or its task has no such "
    "figure\nstored, cosine, text: % of the middle; of the gradients; nats a token above the model's\ntuned, "
    "plugged in: accuracy %/answer nll\nloss, gap: how much worse plugged in is than fine-tuned, and tuned "
    "than plugged in: nats of choice nll, or of answer nll where no task has choices"
)


def _figures_of(point: FrontierPoint) -> list[str]:
    from offsite.experiments.frontier.choose import mean

    cells = [
        f"{100 * point.stored:.1f}",
        f"{point.estimate['cosine']:.3f}",
        f"{point.estimate['loss_gap']:+.2f}",
    ]
    for row in ("emulator_tuned", "plugged_in"):
        acc, nll = (mean(point.rows, row, score) for score in ("acc", "nll"))
        cells.append(f"{_figure(acc, 100, 1)}/{_figure(nll, 1, 2)}" if point.rows else "–")
    return [*cells, *(each.show(3) if each else "–" for each in (point.loss, point.gap))]


def _figure(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"
