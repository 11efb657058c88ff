"""Scores as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from offsite.report.results import ROWS

if TYPE_CHECKING:
    from offsite.study import Table as Study
    from offsite.study.forecast import Forecast


def scores_table(scores: Mapping[str, Mapping[str, float]], notes: Sequence[str] = ()) -> Table:
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


def study_table(study: Study) -> Table:
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
    """What is yet to be done, a line for each cell."""
    done = plan.cells - len(plan.todo)
    table = Table(caption=f"{plan.cells} cells in all, {done} of them done. {plan.how}", caption_justify="left")
    table.add_column("to do")
    table.add_column("rows that lack")
    table.add_column("about", justify="right", no_wrap=True)
    for step in plan.todo:
        table.add_row(step.cell, ", ".join(step.rows).replace("_", " "), duration(step.seconds))
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
    table = Table(caption="\n".join(notes) or None, caption_justify="left")
    table.add_column(first, no_wrap=True)
    for name in ("accuracy %", "normalised %", "answer nll", "questions"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(score: Mapping[str, float]) -> tuple[str, ...]:
    def pm(name: str, scale: float, digits: int) -> str:
        if score[name] is None:  # of texts to be predicted
            return ""
        return f"{scale * score[name]:.{digits}f} ± {scale * score[name + '_stderr']:.{digits}f}"

    return pm("acc", 100, 1), pm("acc_norm", 100, 1), pm("nll", 1, 2), f"{score['n']:.0f}"
