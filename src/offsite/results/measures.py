"""The scores of a task in the units that people read, and the gap and gain of five rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offsite.results.schema import RowKey, Score
from offsite.results.statistics import Estimate, gain, mean

Rows = Mapping[RowKey, Mapping[str, Score]]
"""Scores by the key of their row and by task."""


@dataclass(frozen=True)
class Measure:
    """One score of a task as people read it."""

    caption: str
    hint: str
    digits: int
    of: Callable[[Score], Estimate | None]


def _share(value: float | None, error: float | None, n: int | None) -> Estimate | None:
    return None if value is None else Estimate(value, _error(n, error)).times(100)


def _accuracy(score: Score) -> Estimate | None:
    return _share(score.acc, score.acc_stderr, score.n)


def _normalised(score: Score) -> Estimate | None:
    return _share(score.acc_norm, score.acc_norm_stderr, score.n)


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


ACCURACY = Measure("Accuracy, %", "higher is better", 1, _accuracy)
NORMALISED = Measure("Normalised, %", "higher is better", 1, _normalised)
NLL = Measure("Answer nll, nats per token", "lower is better", 2, _nll)
PERPLEXITY = Measure("Perplexity", "lower is better", 2, _perplexity)


def measures(scores: Sequence[Score]) -> list[Measure]:
    """What the `scores` of a task are read by: a text without questions has no accuracy but a perplexity."""
    answered = any(score.acc is not None for score in scores)
    known = any(score.nll is not None for score in scores)
    return ([ACCURACY] if answered else [PERPLEXITY] if known else []) + ([NLL] if known else [])


GAIN_ROWS: tuple[RowKey, ...] = ("zero_shot", "fine_tuned", "plugged_in")
"""Of which the gain is computed, in this order."""


def rows_of(scores: Mapping[RowKey, Mapping[str, Mapping[str, Any]]]) -> Rows:
    """Rows from JSON."""
    return {row: {task: Score(**score) for task, score in tasks.items()} for row, tasks in scores.items()}


def over_tasks(rows: Rows, row: RowKey, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """The mean of a row over `tasks`; None where a task lacks the measure."""
    return mean([measure.of(rows[row][task]) for task in tasks])


def gap_of(rows: Rows, tasks: Sequence[str], measure: Measure) -> Estimate | None:
    """How much worse the emulator tuned does than plugged in, above zero wherever the full model is better."""
    plugged = over_tasks(rows, "plugged_in", tasks, measure)
    tuned = over_tasks(rows, "emulator_tuned", tasks, measure)
    if not plugged or not tuned:
        return None
    return plugged - tuned if measure is ACCURACY else tuned - plugged


def gain_of(rows: Rows, tasks: Sequence[str]) -> Estimate | None:
    """How much of fine-tuning's fall of the nll plugged in reaches, as a share of 1."""
    zero, tuned, plugged = (
        over_tasks(rows, row, tasks, NLL) for row in ("zero_shot", "fine_tuned", "plugged_in")
    )
    return gain(zero, tuned, plugged) if zero and tuned and plugged else None
