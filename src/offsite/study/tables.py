"""The table of a study in the papers' own layout, with the nll beside the accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from offsite.report.results import ROWS
from offsite.report.verdict import Estimate as Share
from offsite.report.verdict import share

_ENDS = ("zero_shot", "fine_tuned")
_ALIKE = 1e-9  # sums of shares are not exact
_NAMES = {row.key: row.name for row in ROWS}
_LONE = "† one seed, or the same score with every seed: the standard error is that over the questions."
_SEEDS = "± is the standard error over {} seeds."
_WHAT = (
    "Accuracy in %; Δ: plugged in above emulator tuned, in points; in brackets: the share of the middle's "
    "parameters that is stored."
)
_GAIN = "nll: of the answer, nats a token; gain: the share of fine-tuning's fall of it that plugged in reaches."
_PPL = "ppl: perplexity of a token; it has no part in the average."


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; `lone` where that is of one score, whatever the seed."""

    value: float
    stderr: float
    lone: bool = False
    digits: int = 1

    def __str__(self) -> str:
        return f"{self.value:.{self.digits}f} ± {self.stderr:.{self.digits}f}{'†' if self.lone else ''}"


@dataclass(frozen=True)
class Table:
    """Methods and their rows down, tasks across, then averages; a cell of text or of an estimate, or None."""

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
    table = _Runs([run for run in runs if not run["method"]], judged, texts)
    average = [*(["average"] if len(judged) > 1 else []), "Δ", "nll", "gain"] if judged else []
    head = ("method", "row", *judged, *average, *(f"{task} ppl" for task in texts))
    lines = [line for name, some in _methods(runs).items() for line in table.lines(name, some)]
    seeds = len({run["seed"] for run in runs})
    lone = any(isinstance(cell, Estimate) and cell.lone for line in lines for cell in line)
    notes = [*([_WHAT, _GAIN] if judged else []), *([_PPL] if texts else [])]
    notes += [*([_SEEDS.format(seeds)] if seeds > 1 else []), *([_LONE] if lone else [])]
    return Table(head, tuple(lines), (*notes, *results.get("notes", ())))


@dataclass(frozen=True)
class _Runs:
    """What the lines are made of."""

    ends: Sequence[Mapping[str, Any]]
    """The runs of the model itself."""
    judged: Sequence[str]
    texts: Sequence[str]

    def lines(
        self, name: str, runs: Sequence[Mapping[str, Any]]
    ) -> Iterable[tuple[str | Estimate | None, ...]]:
        """Those of one method, its name on the first."""
        for row in (row for row in _NAMES if row in runs[0]):
            cells = [_mean(runs, [(row, 1)], [task], _share) for task in self.judged]
            cells += self._averages(runs, row) if self.judged else []
            cells += [_mean(runs, [(row, 1)], [task], _perplexity) for task in self.texts]
            yield name, _NAMES[row], *cells
            name = ""

    def _averages(self, runs: Sequence[Mapping[str, Any]], row: str) -> Iterable[Estimate | None]:
        """The average accuracy, where it is one, the gap, the nll and the gain."""
        if len(self.judged) > 1:
            yield _mean(runs, [(row, 1)], self.judged, _share)
        last = row == "plugged_in"
        yield _mean(runs, [(row, 1), ("emulator_tuned", -1)], self.judged, _share) if last else None
        yield _mean(runs, [(row, 1)], self.judged, _nll, digits=2)
        yield self._gain(runs) if last else None

    def _gain(self, runs: Sequence[Mapping[str, Any]]) -> Estimate | None:
        """None where fine-tuning gains nothing clear with some seed, or a task lacks."""
        found = []
        for seed in dict.fromkeys(run["seed"] for run in runs):
            reached = self._reached([run for run in runs if run["seed"] == seed], seed)
            if reached is None or reached.stderr is None:
                return None
            found.append((100 * reached.value, 100 * reached.stderr))
        return _over_seeds(found)

    def _reached(self, runs: Sequence[Mapping[str, Any]], seed: int) -> Share | None:
        """The gain with one seed."""
        ends = [run for run in self.ends if run["seed"] == seed]
        three = (
            _mean(some, [(row, 1)], self.judged, _nll)
            for some, row in ((ends, "zero_shot"), (ends, "fine_tuned"), (runs, "plugged_in"))
        )
        known = [Share(one.value, one.stderr) for one in three if one]
        return share(*known) if len(known) == 3 else None


def _mean(
    runs: Sequence[Mapping[str, Any]],
    rows: Sequence[tuple[str, int]],
    tasks: Sequence[str],
    read: Callable[[Mapping[str, Any]], tuple[float, float]],
    digits: int = 1,
) -> Estimate | None:
    """Over the seeds, of the mean over tasks of the signed sum of rows; None if a task lacks."""
    seeds = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        found = {run["task"]: run for run in runs if run["seed"] == seed}
        if not all(task in found for task in tasks):
            return None
        terms = [(sign, *read(found[task][row])) for task in tasks for row, sign in rows]
        value = sum(sign * value for sign, value, _ in terms) / len(tasks)
        seeds.append((value, math.hypot(*(error for _, _, error in terms)) / len(tasks)))
    return _over_seeds(seeds, digits) if seeds else None


def _over_seeds(found: Sequence[tuple[float, float]], digits: int = 1) -> Estimate:
    """The mean of values that each have an error of their own, which stands where the values are all alike."""
    values = [value for value, _ in found]
    spread = stdev(values) if len(values) > 1 else 0.0
    if spread > _ALIKE:
        return Estimate(fmean(values), spread / math.sqrt(len(values)), digits=digits)
    return Estimate(values[0], found[0][1], lone=True, digits=digits)


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
    asked = "" if keep is None else f", keep {keep:g}"
    return f"{method}{asked} ({100 * stored:.1f} %)"


def _share(score: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * score["acc"], 100 * score["acc_stderr"]


def _nll(score: Mapping[str, Any]) -> tuple[float, float]:
    return score["nll"], score["nll_stderr"]


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
        return rf"${cell.value:.{cell.digits}f}{mark}_{{\pm {cell.stderr:.{cell.digits}f}}}$"
    return "".join(_ESCAPED.get(letter, letter) for letter in cell or "")
