"""The table of a study: what each method loses and its gap, then the papers' own columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offsite.results.measures import (
    ACCURACY,
    CHOICE,
    NLL,
    PERPLEXITY,
    Measure,
    judged_by,
    nothing_to_keep,
)
from offsite.results.runs import Group, Run, grouped
from offsite.results.schema import ROWS, RowKey
from offsite.results.statistics import SeedMean

_NAMES = {row.key: row.name for row in ROWS}
_LONE = "† one seed, or the same score with every seed: the standard error is that over the questions."
_SEEDS = "± is the standard error over {} seeds{}."
_FEWER = ", or fewer where one failed"
_LOSS = (
    "loss: how much worse plugged in is than fine-tuned; gap: how much worse emulator tuned is than plugged "
    "in: in {}, then in points of accuracy; paired over the questions; of the mean over {}."
)
_WHAT = "Accuracy in %; in brackets: the share of the middle's parameters that is stored."
_GAIN = "nll: of the answer, nats a token; gain: how much of what fine-tuning gains plugged in keeps, in %."
_FALL = "Fine-tuning gains {} {} over zero-shot."
_PPL = "ppl: perplexity of a token; it has no part in the average."
_UNITS = {CHOICE: "nats a question of choice nll", NLL: "nats a token of answer nll"}


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
    runs = [Run.model_validate(run) for run in results["runs"]]
    columns = _Columns.of(runs)
    groups = grouped(runs)
    lines = [line for group in groups for line in columns.lines(group)]
    notes = [*columns.notes(groups[0].itself), *_errors(lines)]
    return StudyTable(columns.head, tuple(lines), (*notes, *results.get("notes", ())))


def _errors(lines: Iterable[Sequence[str | Mean | None]]) -> Iterator[str]:
    """What the errors in the table are."""
    means = [cell for line in lines for cell in line if isinstance(cell, Mean)]
    counts = {mean.seeds for mean in means}
    if max(counts, default=1) > 1:
        yield _SEEDS.format(max(counts), _FEWER if len(counts) > 1 else "")
    if any(mean.over_questions for mean in means):
        yield _LONE


@dataclass(frozen=True)
class _Columns:
    """What stands across."""

    answered: Sequence[str]
    """Tasks that have an accuracy."""
    texts: Sequence[str]
    measure: Measure
    """By what loss, gap and gain are, on the mean of `judged`."""
    judged: Sequence[str]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Columns:
        tasks = list(dict.fromkeys(run.task for run in runs))
        answered = {run.task for run in runs if any(score.acc is not None for score in run.scores.values())}
        asked, texts = ([t for t in tasks if (t in answered) == wanted] for wanted in (True, False))
        rows = [{run.task: score} for run in runs for score in run.scores.values()]
        return cls(asked, texts, *judged_by(rows, asked or texts))

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the columns."""
        points = ["loss, points", "gap, points"] if self.answered else []
        average = ["average"] if len(self.answered) > 1 else []
        nlls = ["choice nll"] if self.measure is CHOICE else []
        nlls += ["nll"] if self.answered else []
        texts = [f"{task} ppl" for task in self.texts]
        return ("method", "row", "loss", "gap", *points, "gain", *self.answered, *average, *nlls, *texts)

    def lines(self, group: Group) -> Iterator[tuple[str | Mean | None, ...]]:
        """Those of one method, its name on the first; loss, gap and gain in the row plugged in."""
        name = _title(group)
        known = {row for run in group.runs for row in run.scores}
        for row in (row for row in _NAMES if row in known):
            judged = self._judged(group, on=row == "plugged_in")
            yield name, _NAMES[row], *judged, *self._scores(group, row)
            name = ""

    def notes(self, itself: Group) -> Iterator[str]:
        """What the columns mean, and what there is to keep."""
        yield _LOSS.format(_UNITS[self.measure], ", ".join(self.judged))
        if self.answered:
            yield _WHAT
            yield _GAIN
        if self.texts:
            yield _PPL
        fall = _cell(itself.fall(self.judged, self.measure), self.measure.digits)
        if fall and not itself.nothing_gained(self.judged, self.measure):
            yield _FALL.format(fall, _UNITS[self.measure])
        for tasks in [self.judged] + [[task] for task in self.judged if len(self.judged) > 1]:
            if fall_of := itself.nothing_gained(tasks, self.measure):
                yield nothing_to_keep(fall_of, self.measure, f" on {' and '.join(tasks)}")

    def _judged(self, group: Group, on: bool) -> Iterator[Mean | None]:
        for measure, tasks in [
            (self.measure, self.judged),
            *([(ACCURACY, self.answered)] if self.answered else []),
        ]:
            for of in (group.loss, group.gap):
                yield _cell(of(tasks, measure), measure.digits) if on else None
        gain = group.gain(self.judged, self.measure) if on else None
        yield _cell(gain and gain.times(100), ACCURACY.digits)

    def _scores(self, group: Group, row: RowKey) -> Iterator[Mean | None]:
        """Accuracies and their average, where it is one, the nll of choices and of answers, perplexities."""
        means = [(ACCURACY, [task]) for task in self.answered]
        means += [(ACCURACY, list(self.answered))] if len(self.answered) > 1 else []
        means += [(CHOICE, list(self.judged))] if self.measure is CHOICE else []
        means += [(NLL, list(self.answered))] if self.answered else []
        means += [(PERPLEXITY, [task]) for task in self.texts]
        for measure, tasks in means:
            yield _cell(group.row(row, tasks, measure), measure.digits)


def _cell(found: SeedMean | None, digits: int) -> Mean | None:
    return None if found is None else Mean(found.value, found.stderr, found.seeds, found.over_questions, digits)


def _title(group: Group) -> str:
    if not group.method:
        return "full model"
    asked = "" if group.keep is None else f", keep {group.keep:g}"
    return f"{group.method}{asked} ({100 * group.stored:.1f} %)"


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
