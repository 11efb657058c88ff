"""One comparison as one HTML file: opens from disk, needs no network, prints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offsite.folders import write_text
from offsite.report.figures import five_rows, loss_curves
from offsite.report.page import render
from offsite.report.results import ROWS, SCORES, Results
from offsite.report.verdict import estimate, judge

__all__ = ["write"]


def write(results: Mapping[str, Any], path: Path) -> Path:
    """Write the report of one comparison, as `compare` returns it, to `path`, and return that.

    `results["rows"]` maps each of the five rows to its tasks and scores: accuracies as shares of 1, nll in
    nats per token of the right answer; `call` is the command, as one string or as its words. What is missing
    besides `rows`, `keep` and `method` is left out of the page. Raises a UserError where the results do not
    have that shape or plotly is not installed; an OSError passes through, and nothing half-written stays.
    """
    page = _page(Results.read(results))
    write_text(path, page)
    return path


def _page(results: Results) -> str:
    return render(
        "page.html.jinja",
        results=results,
        rows=ROWS,
        verdict=judge(results, results.tasks),
        tasks=[_task(results, task) for task in results.tasks],
        curves=loss_curves(results),
        block=_block(results),
        seconds={stage: _duration(seconds) for stage, seconds in (results.seconds or {}).items()},
    )


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
    """What repeats the run: the command, the rest as comments, so that a shell takes the whole."""
    facts = {"model": results.model, "train": results.train, "seed": results.seed, "limit": results.limit}
    knobs = [f"{name} {value}" for name, value in (results.tuning or {}).items()]
    facts |= {"tuning": ", ".join(knobs) or None}
    facts |= {"date": results.date, "machine": results.machine, **(results.versions or {})}
    known = {_one_line(name): _one_line(str(fact)) for name, fact in facts.items() if fact is not None}
    width = max(map(len, known), default=0)
    comments = [f"# {name:<{width}}  {fact}" for name, fact in known.items()]
    call = results.call if isinstance(results.call, str) else shlex.join(results.call or [])
    return "\n".join([call, "", *comments]).strip()


def _one_line(text: str) -> str:
    # A line break would end the comment, and what follows would run where it is pasted.
    return "".join(char if char.isprintable() else " " for char in text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
