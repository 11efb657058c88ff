"""The scores of a task in the units that people read; what five rows lose, and the gap between them.

Loss is how much worse plugged in is than fine-tuned, gap how much worse the emulator tuned is than plugged in.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from offsite.results.choices import choice_nlls, picks
from offsite.results.schema import RowKey, Score
from offsite.results.statistics import Estimate, mean, standard_error

Rows = Mapping[RowKey, Mapping[str, Score]]
"""Scores by the key of their row and by task."""


@dataclass(frozen=True)
class Measure:
    """One score of a task as people read it."""

    caption: str
    hint: str
    unit: str
    digits: int
    of: Callable[[Score], Estimate | None]
    each: Callable[[Score], Sequence[float] | None] = lambda score: None
    """Its value for each question, where the score kept the questions apart."""

    @property
    def sign(self) -> int:
        """1 where more is worse."""
        return 1 if self.hint == "lower is better" else -1

    def sum(self, terms: Sequence[tuple[float, Score]]) -> Estimate | None:
        """Add scores, each times a weight; None where one lacks the measure.

        Scores of the same questions have the standard error of the sums question by question (paired); others
        that of independent samples, which is usually larger.
        """
        found = [(weight, value) for weight, score in terms if (value := self.of(score))]
        if len(found) < len(terms):
            return None
        total = sum(weight * value.value for weight, value in found)
        each = [values for _, score in terms if (values := self.each(score))]
        if len({score.right for _, score in terms}) == 1 and len(each) == len(terms):
            weights = [weight for weight, _ in terms]
            sums = [math.fsum(map(operator.mul, weights, values)) for values in zip(*each, strict=True)]
            return Estimate(total, standard_error(sums))
        errors = [abs(weight) * value.stderr for weight, value in found if value.stderr is not None]
        return Estimate(total, math.hypot(*errors) if len(errors) == len(found) else None)


def _share(value: float | None, error: float | None, n: int | None) -> Estimate | None:
    return None if value is None else Estimate(value, _error(n, error)).times(100)


def _accuracy(score: Score) -> Estimate | None:
    return _share(score.acc, score.acc_stderr, score.n)


def _normalised(score: Score) -> Estimate | None:
    return _share(score.acc_norm, score.acc_norm_stderr, score.n)


def _picks(score: Score) -> Sequence[float] | None:
    """In points, as the accuracy is."""
    known = score.choices is not None and score.right is not None
    return [100 * each for each in picks(score.choices, score.right)] if known else None  # type: ignore[arg-type]


def _choice_nlls(score: Score) -> Sequence[float] | None:
    return None if score.choices is None or score.right is None else choice_nlls(score.choices, score.right)


def _choice(score: Score) -> Estimate | None:
    each = _choice_nlls(score)
    return None if each is None else Estimate(fmean(each), standard_error(each))


def _nll(score: Score) -> Estimate | None:
    return None if score.nll is None else Estimate(score.nll, _error(score.n, score.nll_stderr))


def _perplexity(score: Score) -> Estimate | None:
    """Its error by the delta method."""
    if score.nll is None or score.nll > 700:  # beyond, the exponential overflows
        return None
    return Estimate(1.0, _error(score.n, score.nll_stderr)).times(math.exp(score.nll))


def _error(n: int | None, error: float | None) -> float | None:
    """Of a single question the spread is unknown, and is written as 0."""
    return None if n == 1 else error


_LOWER, _HIGHER = "lower is better", "higher is better"
ACCURACY = Measure("Accuracy, %", _HIGHER, "points", 1, _accuracy, _picks)
NORMALISED = Measure("Normalised, %", _HIGHER, "points", 1, _normalised)
CHOICE = Measure("Choice nll, nats per question", _LOWER, "nats", 3, _choice, _choice_nlls)
NLL = Measure("Answer nll, nats per token", _LOWER, "nats", 2, _nll)
PERPLEXITY = Measure("Perplexity", _LOWER, "", 2, _perplexity)


def measures(scores: Sequence[Score]) -> list[Measure]:
    """What the `scores` of a task are read by: a text without questions has no accuracy but a perplexity."""
    answered = any(score.acc is not None for score in scores)
    known = any(score.nll is not None for score in scores)
    chosen = [CHOICE] if any(map(_has_choices, scores)) else []
    return ([ACCURACY] if answered else [PERPLEXITY] if known else []) + chosen + ([NLL] if known else [])


def judged_by(rows: Iterable[Mapping[str, Score]], tasks: Sequence[str]) -> tuple[Measure, list[str]]:
    """By what methods are judged on `tasks`, and on which of them.

    That is choice nll on the tasks that have choices, where any has; else answer nll on all. The two are not of
    one unit, so they have no mean.
    """
    asked = {task for row in rows for task, score in row.items() if _has_choices(score)}
    chosen = [task for task in tasks if task in asked]
    return (CHOICE, chosen) if chosen else (NLL, list(tasks))


def _has_choices(score: Score) -> bool:
    return score.right is not None and len(score.right) > 1


def rows_of(scores: Mapping[RowKey, Mapping[str, Mapping[str, Any]]]) -> Rows:
    """Rows from JSON."""
    return {row: {task: Score(**score) for task, score in tasks.items()} for row, tasks in scores.items()}


def over_tasks(rows: Rows, row: RowKey, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """The mean of a row over `tasks`; None where a task lacks the measure."""
    return _combined(rows, {row: 1}, tasks, measure)


def loss_of(rows: Rows, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """How much worse plugged in is than fine-tuned: what is given up by not seeing the model."""
    return _worse(rows, "plugged_in", "fine_tuned", tasks, measure)


def gap_of(rows: Rows, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """How much worse the emulator tuned is than plugged in: what whoever has the emulator alone lacks."""
    return _worse(rows, "emulator_tuned", "plugged_in", tasks, measure)


def fall_of(rows: Rows, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """How much worse zero-shot is than fine-tuned: what there is to keep."""
    return _worse(rows, "zero_shot", "fine_tuned", tasks, measure)


def gain_of(rows: Rows, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """The share of what fine-tuning gains that plugged in keeps; 1: all of it.

    None where that is nothing. The error is that of a ratio, paired as the measure's sums are.
    """
    fall, loss = fall_of(rows, tasks, measure), loss_of(rows, tasks, measure)
    if not fall or not loss or not fall.above_error:
        return None
    kept = 1 - loss.value / fall.value
    # weights that add up to nothing
    around: dict[RowKey, float] = {"zero_shot": 1 - kept, "plugged_in": -1, "fine_tuned": kept}
    apart = _combined(rows, around, tasks, measure)
    return Estimate(kept, None if apart is None or apart.stderr is None else apart.stderr / fall.value)


def nothing_to_keep(fall: Estimate, measure: Measure, on: str = "") -> str:
    """The sentence for a `fall` that is not above its error."""
    size = f"{fall.show(measure.digits)} {fall.spread(measure.digits)}".strip()
    return (
        f"Fine-tuning is no better than zero-shot{on} beyond its standard error ({size} {measure.unit}), so "
        "there is nothing to keep."
    )


def _worse(rows: Rows, row: RowKey, than: RowKey, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    return _combined(rows, {row: measure.sign, than: -measure.sign}, tasks, measure)


def _combined(
    rows: Rows, weights: Mapping[RowKey, float], tasks: Sequence[str], measure: Measure
) -> Estimate | None:
    """The weighted sum of rows, on the mean of `tasks`; None where a task of one lacks the measure."""
    if any(task not in rows.get(row, {}) for row in weights for task in tasks):
        return None
    return mean([measure.sum([(weight, rows[row][task]) for row, weight in weights.items()]) for task in tasks])
