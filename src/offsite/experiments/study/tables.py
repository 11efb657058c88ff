"""The table of a study in the papers' own layout, with the nll beside the accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from offsite.results.measures import ACCURACY, NLL, PERPLEXITY, Measure, alike, over_seeds
from offsite.results.schema import ROWS, Score
from offsite.results.statistics import Estimate, share

_ENDS = ("zero_shot", "fine_tuned")
_Run = Mapping[str, Any]
_NAMES = {row.key: row.name for row in ROWS}
_LONE = "† one seed, or the same score with every seed: the standard error is that over the questions."
_SEEDS = "± is the standard error over {} seeds{}."
_FEWER = ", or fewer where one failed"
_WHAT = (
    "Accuracy in %; Δ: plugged in above emulator tuned, in points; in brackets: the share of the middle's "
    "parameters that is stored."
)
_GAIN = (
    "nll: of the answer, nats a token; gain: how much of fine-tuning's fall of it plugged in reaches, in %; "
    "these and Δ are of the mean over tasks."
)
_PPL = "ppl: perplexity of a token; it has no part in the average."


@dataclass(frozen=True)
class Mean:
    """Over `seeds`, with its standard error where one is known; `lone`: that of one score, all alike."""

    value: float
    stderr: float | None
    seeds: int
    lone: bool
    digits: int = 1

    def __str__(self) -> str:
        spread = "" if self.stderr is None else f" ± {self.stderr:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{spread}{'†' if self.lone else ''}"


@dataclass(frozen=True)
class Table:
    """Methods and their rows down, tasks across, then averages; a cell of text or of an estimate, or None."""

    head: tuple[str, ...]
    lines: tuple[tuple[str | Mean | None, ...], ...]
    notes: tuple[str, ...]

    @property
    def groups(self) -> Iterable[tuple[int, tuple[str | Mean | None, ...]]]:
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
    lines = [line for some in _methods(runs) for line in table.lines(some)]
    notes = [*([_WHAT, _GAIN] if judged else []), *([_PPL] if texts else []), *_errors(lines)]
    return Table(head, tuple(lines), (*notes, *results.get("notes", ())))


def _errors(lines: Iterable[Sequence[str | Mean | None]]) -> Iterator[str]:
    """What the errors in the table are."""
    means = [cell for line in lines for cell in line if isinstance(cell, Mean)]
    counts = {mean.seeds for mean in means}
    if max(counts, default=1) > 1:
        yield _SEEDS.format(max(counts), _FEWER if len(counts) > 1 else "")
    if any(mean.lone for mean in means):
        yield _LONE


@dataclass(frozen=True)
class _Runs:
    """What the lines are made of."""

    ends: Sequence[_Run]
    """Those of the model itself."""
    judged: Sequence[str]
    texts: Sequence[str]

    def lines(self, runs: Sequence[_Run]) -> Iterator[tuple[str | Mean | None, ...]]:
        """Those of one method, its name on the first."""
        name = _title(runs)
        for row in (row for row in _NAMES if row in runs[0]):
            cells = [_mean(runs, [(row, 1)], [task], ACCURACY) for task in self.judged]
            cells += self._averages(runs, row) if self.judged else []
            cells += [_mean(runs, [(row, 1)], [task], PERPLEXITY) for task in self.texts]
            yield name, _NAMES[row], *cells
            name = ""

    def _averages(self, runs: Sequence[_Run], row: str) -> Iterator[Mean | None]:
        """The average accuracy, where it is one, the gap, the nll and the gain."""
        if len(self.judged) > 1:
            yield _mean(runs, [(row, 1)], self.judged, ACCURACY)
        last = row == "plugged_in"
        yield _mean(runs, [(row, 1), ("emulator_tuned", -1)], self.judged, ACCURACY) if last else None
        yield _mean(runs, [(row, 1)], self.judged, NLL)
        yield self._gain(runs) if last else None

    def _gain(self, runs: Sequence[_Run]) -> Mean | None:
        """None where fine-tuning gains nothing clear with some seed: there is no mean of the other ones."""
        found = []
        for seed, some in _by_seed(runs).items():
            ends = [run for run in self.ends if run["seed"] == seed]
            zero, tuned = (_of_seed(ends, [(row, 1)], self.judged, NLL) for row in _ENDS)
            plugged = _of_seed(some, [("plugged_in", 1)], self.judged, NLL)
            if zero and tuned and plugged:
                found.append(share(zero, tuned, plugged))
        known = [one.times(100) for one in found if one]
        return _over(known, ACCURACY.digits) if known and len(known) == len(found) else None


def _mean(
    runs: Sequence[_Run], rows: Sequence[tuple[str, int]], tasks: Sequence[str], measure: Measure
) -> Mean | None:
    """Over the seeds that have it, of the mean over tasks of the signed sum of rows."""
    found = [_of_seed(some, rows, tasks, measure) for some in _by_seed(runs).values()]
    known = [one for one in found if one]
    return _over(known, measure.digits) if known else None


def _of_seed(
    runs: Sequence[_Run], rows: Sequence[tuple[str, int]], tasks: Sequence[str], measure: Measure
) -> Estimate | None:
    """With one seed; None if a task lacks. The errors are added as of independent samples."""
    found = {run["task"]: run for run in runs}
    terms: list[Estimate] = []
    for task in tasks:
        for row, sign in rows:
            score = found.get(task, {}).get(row)
            term = measure.of(Score(**score)) if score else None
            if term is None:
                return None
            terms.append(term.times(sign))
    errors = [term.stderr for term in terms if term.stderr is not None]
    stderr = math.hypot(*errors) / len(tasks) if len(errors) == len(terms) else None
    return Estimate(sum(term.value for term in terms) / len(tasks), stderr)


def _over(found: Sequence[Estimate], digits: int) -> Mean:
    values = [one.value for one in found]
    mean = over_seeds(values, found[0].stderr)
    assert mean is not None
    return Mean(mean.value, mean.stderr, len(values), alike(values), digits)


def _by_seed(runs: Sequence[_Run]) -> dict[int, list[_Run]]:
    seeds: dict[int, list[_Run]] = {}
    for run in runs:
        seeds.setdefault(run["seed"], []).append(run)
    return seeds


def _methods(runs: Sequence[_Run]) -> Iterable[list[_Run]]:
    """The runs, by what they have in one line."""
    kinds: dict[tuple[str, Any], list[_Run]] = {}
    for run in runs:
        kinds.setdefault((run["method"], run.get("keep")), []).append(run)
    return kinds.values()


def _title(runs: Sequence[_Run]) -> str:
    method = runs[0]["method"]
    if not method:
        return "full model"
    keep, stored = runs[0]["keep"], fmean(run["stored"] for run in runs)
    asked = "" if keep is None else f", keep {keep:g}"
    return f"{method}{asked} ({100 * stored:.1f} %)"


def _plain(cell: str | Mean | None) -> str:
    return "" if cell is None else str(cell)


_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#",
    "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Δ": r"$\Delta$", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def _tex(cell: str | Mean | None) -> str:
    if isinstance(cell, Mean):
        mark = r"^{\dagger}" if cell.lone else ""
        spread = "" if cell.stderr is None else rf"_{{\pm {cell.stderr:.{cell.digits}f}}}"
        return f"${cell.value:.{cell.digits}f}{mark}{spread}$"
    return "".join(_ESCAPED.get(letter, letter) for letter in cell or "")
