"""Scores as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from offsite.report.results import ROWS


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


def _table(first: str, notes: Sequence[str]) -> Table:
    table = Table(caption="\n".join(notes) or None, caption_justify="left")
    table.add_column(first, no_wrap=True)
    for name in ("accuracy %", "normalised %", "answer nll", "questions"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(score: Mapping[str, float]) -> tuple[str, ...]:
    def pm(name: str, scale: float, digits: int) -> str:
        return f"{scale * score[name]:.{digits}f} ± {scale * score[name + '_stderr']:.{digits}f}"

    return pm("acc", 100, 1), pm("acc_norm", 100, 1), pm("nll", 1, 2), f"{score['n']:.0f}"
