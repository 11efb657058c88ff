"""The table of a study in the papers' own layout, with the nll beside the accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from offsite.results.measures import ACCURACY, NLL, PERPLEXITY, Measure
from offsite.results.schema import ROWS, Score
from offsite.results.statistics import Estimate, SeedMean, gain_over_seeds, mean, over_seeds

_Run = Mapping[str, Any]
_NAMES = {row.key: row.name for row in ROWS}
_LONE = "† one seed, or the same score with every seed: the standard error is that over the questions."
_SEEDS = "± is the standard error over {} seeds{}."
_FEWER = ", or fewer where one failed"
_WHAT = (
    "Accuracy in %; gap: how many points plugged in is above emulator tuned; in brackets: the share of the "
    "middle's parameters that is stored."
)
_GAIN = (
    "nll: of the answer, nats a token; gain: how much of fine-tuning's fall of it plugged in reaches, in %; "
    "these and the gap are of the mean over tasks, gap and gain in the row plugged in."
)
_NO_GAIN = "No gain stands where fine-tuning does not lower the nll by more than its error, or a run failed."
_PPL = "ppl: perplexity of a token; it has no part in the average."


@dataclass(frozen=True)
class Mean(SeedMean):
    """A mean over seeds as a cell shows it."""

    digits: int = 1

    def __str__(self) -> str:
        spread = "" if self.stderr is None else f" ± {self.stderr:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{spread}{self.mark}"


@dataclass(frozen=True)
class StudyTable:
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


def tabulate(results: Mapping[str, Any]) -> StudyTable:
    """The table of a study's results (`run`'s): means over the seeds, the lines in the order of its cells."""
    runs = results["runs"]
    of = list(dict.fromkeys(run["task"] for run in runs))
    scored = {run["task"]: next(run[row] for row in _NAMES if row in run)["acc"] is not None for run in runs}
    judged, texts = [task for task in of if scored[task]], [task for task in of if not scored[task]]
    table = _Runs([run for run in runs if not run["method"]], judged, texts)
    average = [*(["average"] if len(judged) > 1 else []), "gap", "nll", "gain"] if judged else []
    head = ("method", "row", *judged, *average, *(f"{task} ppl" for task in texts))
    lines = [line for some in _methods(runs) for line in table.lines(some)]
    notes = [*([_WHAT, _GAIN] if judged else []), *([_PPL] if texts else []), *_errors(lines)]
    plugged = [dict(zip(head, line, strict=True)) for line in lines if line[1] == _NAMES["plugged_in"]]
    if judged and any(line["gain"] is None for line in plugged):
        notes.append(_NO_GAIN)
    return StudyTable(head, tuple(lines), (*notes, *results.get("notes", ())))


def _errors(lines: Iterable[Sequence[str | Mean | None]]) -> Iterator[str]:
    """What the errors in the table are."""
    means = [cell for line in lines for cell in line if isinstance(cell, Mean)]
    counts = {mean.seeds for mean in means}
    if max(counts, default=1) > 1:
        yield _SEEDS.format(max(counts), _FEWER if len(counts) > 1 else "")
    if any(mean.over_questions for mean in means):
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
            cells = [_over(runs, row, [task], ACCURACY) for task in self.judged]
            cells += self._averages(runs, row) if self.judged else []
            cells += [_over(runs, row, [task], PERPLEXITY) for task in self.texts]
            yield name, _NAMES[row], *cells
            name = ""

    def _averages(self, runs: Sequence[_Run], row: str) -> Iterator[Mean | None]:
        """The average accuracy, where it is one, the gap, the nll and the gain."""
        if len(self.judged) > 1:
            yield _over(runs, row, self.judged, ACCURACY)
        last = row == "plugged_in"
        yield self._gap(runs) if last else None
        yield _over(runs, row, self.judged, NLL)
        yield self._gain(runs) if last else None

    def _gap(self, runs: Sequence[_Run]) -> Mean | None:
        gaps = []
        for some in _by_seed(runs).values():
            tuned, plugged = (
                _row(some, row, self.judged, ACCURACY) for row in ("emulator_tuned", "plugged_in")
            )
            gaps.append(plugged - tuned if plugged and tuned else None)
        return _cell(over_seeds([gap for gap in gaps if gap]), ACCURACY.digits)

    def _gain(self, runs: Sequence[_Run]) -> Mean | None:
        nlls = []
        for seed, some in _by_seed(runs).items():
            ends = [run for run in self.ends if run["seed"] == seed]
            rows = ((ends, "zero_shot"), (ends, "fine_tuned"), (some, "plugged_in"))
            nlls.append([_row(of, row, self.judged, NLL) for of, row in rows])
        found = gain_over_seeds(nlls)
        return _cell(found and found.times(100), ACCURACY.digits)


def _over(runs: Sequence[_Run], row: str, tasks: Sequence[str], measure: Measure) -> Mean | None:
    """The mean over the seeds that have it, of the mean of a row over tasks."""
    found = [_row(some, row, tasks, measure) for some in _by_seed(runs).values()]
    return _cell(over_seeds([one for one in found if one]), measure.digits)


def _cell(found: SeedMean | None, digits: int) -> Mean | None:
    return None if found is None else Mean(found.value, found.stderr, found.seeds, found.over_questions, digits)


def _row(runs: Sequence[_Run], row: str, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """The mean of a row over tasks, with one seed; None where a task lacks it."""
    scores = {run["task"]: Score(**run[row]) for run in runs if run.get(row)}
    return mean([measure.of(scores[task]) if task in scores else None for task in tasks])


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
    "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def _tex(cell: str | Mean | None) -> str:
    if isinstance(cell, Mean):
        mark = r"^{\dagger}" if cell.over_questions else ""
        spread = "" if cell.stderr is None else rf"_{{\pm {cell.stderr:.{cell.digits}f}}}"
        return f"${cell.value:.{cell.digits}f}{mark}{spread}$"
    return "".join(_ESCAPED.get(letter, letter) for letter in cell or "")
