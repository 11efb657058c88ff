"""One comparison: the five rows, what they say, how tuning went, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offsite.report.figures import five_rows, loss_curves
from offsite.report.part import Part, command_block
from offsite.results.schema import ROWS, SCORES, Results
from offsite.results.statistics import estimate, judge


def comparison(data: Mapping[str, Any]) -> Part:
    """The part about the `results.json` of one comparison; a UserError where it has another shape."""
    results = Results.read(data)
    values = {
        "results": results,
        "verdict": judge(results, results.tasks),
        "tasks": [_task(results, task) for task in results.tasks],
        "curves": loss_curves(results),
        "block": _block(results),
        "seconds": {stage: _duration(seconds) for stage, seconds in (results.seconds or {}).items()},
    }
    title = f"Comparison: {results.model or results.method}, {', '.join(results.tasks)}"
    return Part(title, "page.html.jinja", values)


def _task(results: Results, task: str) -> dict[str, Any]:
    counts = sorted({n for row in results.rows.values() if (n := row[task].n) is not None})
    return {
        "name": task,
        "source": (results.sources or {}).get(task),
        "n": "–".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]]))),
        "verdict": judge(results, [task]),
        "acc": five_rows(results, task, "acc", scale=100, digits=1),
        "nll": five_rows(results, task, "nll", scale=1, digits=2),
        "cells": {
            row.key: {score: estimate(results, row.key, [task], score) for score in SCORES} for row in ROWS
        },
    }


def _block(results: Results) -> str:
    facts: dict[str, object] = {"model": results.model, "train": results.train}
    knobs = [f"{name} {value}" for name, value in (results.tuning or {}).items()]
    facts |= {"seed": results.seed, "limit": results.limit, "tuning": ", ".join(knobs) or None}
    facts |= {"date": results.date, "machine": results.machine, **(results.versions or {})}
    return command_block(results.call, facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
