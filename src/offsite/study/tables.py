"""The table of a study in the papers' own layout: methods and rows down, tasks across, then average and gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from offsite.report.results import ROWS

_ENDS = ("zero_shot", "fine_tuned")
_ALIKE = 1e-9  # sums of shares are not exact
_NAMES = {row.key: row.name for row in ROWS}
_LONE = "† one seed, or the same score with every seed: the standard error is that over the questions."
_SEEDS = "± is the standard error over {} seeds."
_WHAT = (
    "Accuracy in %; Δ: plugged in above emulator tuned, in points, of the average; stored: the share of the "
    "middle's parameters in the emulator."
)
_PPL = "ppl: perplexity of a token; it has no part in the average."


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; `lone` where that is of one score, whatever the seed."""

    value: float
    stderr: float
    lone: bool = False

    def __str__(self) -> str:
        return f"{self.value:.1f} ± {self.stderr:.1f}{'†' if self.lone else ''}"


@dataclass(frozen=True)
class Table:
    """Lines of cells under a head; a cell of text or of an estimate, and None where there is none."""

    head: tuple[str, ...]
    lines: tuple[tuple[str | Estimate | None, ...], ...]
    notes: tuple[str, ...]

    @property
    def groups(self) -> Iterable[tuple[int, tuple[str | Estimate | None, ...]]]:
        """The lines, each with the number of the method that it is of."""
        number = 0
        for line in self.lines:
            number += bool(line[0])
            yield number, line

    def markdown(self) -> str:
        """As GitHub reads it."""

        def row(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = ["---"] * 2 + ["---:"] * (len(self.head) - 2)
        lines = [row(self.head), row(rule), *(row(map(_plain, line)) for line in self.lines)]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        r"""A `tabular` with booktabs' rules, for a paper's `table`."""
        body, last = [], 1
        for number, line in self.groups:
            body += [r"\midrule"] if number != last else []
            body.append(" & ".join(map(_tex, line)) + r" \\")
            last = number
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                rf"\begin{{tabular}}{{ll{'r' * (len(self.head) - 2)}}}",
                r"\toprule",
                " & ".join(map(_tex, self.head)) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                *(f"% {note}" for note in self.notes),
                "",
            ]
        )


def tabulate(results: Mapping[str, Any]) -> Table:
    """The table of a study's results (`run`'s): means over the seeds, the lines in the order of its cells."""
    runs = results["runs"]
    of = list(dict.fromkeys(run["task"] for run in runs))
    scored = {run["task"]: next(run[row] for row in _NAMES if row in run)["acc"] is not None for run in runs}
    judged, texts = [task for task in of if scored[task]], [task for task in of if not scored[task]]
    table = _Runs(runs, judged, texts)
    average = ["average", "Δ"] if judged else []
    head = ("method", "row", *judged, *average, *(f"{task} ppl" for task in texts))
    lines = [line for name, some in _methods(runs).items() for line in table.lines(name, some)]
    seeds = len({run["seed"] for run in runs})
    lone = any(isinstance(cell, Estimate) and cell.lone for line in lines for cell in line)
    notes = [*([_WHAT] if judged else []), *([_PPL] if texts else [])]
    notes += [*([_SEEDS.format(seeds)] if seeds > 1 else []), *([_LONE] if lone else [])]
    return Table(head, tuple(lines), (*notes, *results.get("notes", ())))


@dataclass(frozen=True)
class _Runs:
    """What the lines are made of."""

    runs: Sequence[Mapping[str, Any]]
    judged: Sequence[str]
    texts: Sequence[str]

    def lines(
        self, name: str, runs: Sequence[Mapping[str, Any]]
    ) -> Iterable[tuple[str | Estimate | None, ...]]:
        """Those of one method, its name on the first."""
        for row in (row for row in _NAMES if row in runs[0]):
            cells: list[Estimate | None] = [
                self._mean(runs, [(row, 1)], [task], _share) for task in self.judged
            ]
            if self.judged:
                gap = [("plugged_in", 1), ("emulator_tuned", -1)] if row == "plugged_in" else []
                cells.append(self._mean(runs, [(row, 1)], self.judged, _share))
                cells.append(self._mean(runs, gap, self.judged, _share) if gap else None)
            cells += [self._mean(runs, [(row, 1)], [task], _perplexity) for task in self.texts]
            yield name, _NAMES[row], *cells
            name = ""

    def _mean(
        self,
        runs: Sequence[Mapping[str, Any]],
        rows: Sequence[tuple[str, int]],
        tasks: Sequence[str],
        read: Callable[[Mapping[str, Any]], tuple[float, float]],
    ) -> Estimate | None:
        """Over the seeds, of the mean over tasks of the signed sum of rows; None if a task lacks."""
        seeds = []
        for seed in dict.fromkeys(run["seed"] for run in runs):
            found = {run["task"]: run for run in runs if run["seed"] == seed}
            if not all(task in found for task in tasks):
                return None
            seeds.append([(sign, *read(found[task][row])) for task in tasks for row, sign in rows])
        values = [sum(sign * value for sign, value, _ in seed) / len(tasks) for seed in seeds]
        spread = stdev(values) if len(values) > 1 else 0.0
        if spread > _ALIKE:
            return Estimate(fmean(values), spread / math.sqrt(len(values)))
        stderr = math.sqrt(sum(error**2 for _, _, error in seeds[0])) / len(tasks)
        return Estimate(values[0], stderr, lone=True)


def _methods(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs by what stands before their lines."""
    kinds: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for run in runs:
        kinds.setdefault((run["method"], run.get("keep")), []).append(run)
    return {_title(method, some): some for (method, _), some in kinds.items()}


def _title(method: str, runs: Sequence[Mapping[str, Any]]) -> str:
    if not method:
        return "full model"
    keep, stored = runs[0]["keep"], fmean(run["stored"] for run in runs)
    asked = "" if keep is None else f"keep {keep:g}, "
    return f"{method} ({asked}stored {100 * stored:.1f} %)"


def _share(score: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * score["acc"], 100 * score["acc_stderr"]


def _perplexity(score: Mapping[str, Any]) -> tuple[float, float]:
    """And its standard error, to the first order."""
    value = math.exp(min(score["nll"], 700.0))
    return value, value * score["nll_stderr"]


def _plain(cell: str | Estimate | None) -> str:
    return "" if cell is None else str(cell)


_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#",
    "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Δ": r"$\Delta$", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def _tex(cell: str | Estimate | None) -> str:
    if isinstance(cell, Estimate):
        mark = r"^{\dagger}" if cell.lone else ""
        return rf"${cell.value:.1f} \pm {cell.stderr:.1f}{mark}$"
    return "".join(_ESCAPED.get(letter, letter) for letter in cell or "")
