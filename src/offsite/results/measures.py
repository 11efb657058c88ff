"""The scores of a task as people read them, and what becomes of them over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from offsite.results.schema import Score
from offsite.results.statistics import Estimate

_ALIKE = 1e-9


@dataclass(frozen=True)
class Measure:
    """One score of a task as people read it."""

    caption: str
    hint: str
    digits: int
    of: Callable[[Score], Estimate | None]


def _share(cell: Score) -> Estimate | None:
    return None if cell.acc is None else Estimate(cell.acc, _error(cell, cell.acc_stderr)).times(100)


def _nll(cell: Score) -> Estimate | None:
    return None if cell.nll is None else Estimate(cell.nll, _error(cell, cell.nll_stderr))


def _perplexity(cell: Score) -> Estimate | None:
    """Its error by the delta method."""
    if cell.nll is None or cell.nll > 700:
        return None
    return Estimate(1.0, _error(cell, cell.nll_stderr)).times(math.exp(cell.nll))


def _error(cell: Score, error: float | None) -> float | None:
    """Of a single question the spread is unknown, and is written as 0."""
    return None if cell.n == 1 else error


ACCURACY = Measure("Accuracy, %", "higher is better", 1, _share)
NLL = Measure("Answer nll, nats per token", "lower is better", 2, _nll)
PERPLEXITY = Measure("Perplexity", "lower is better", 2, _perplexity)


def measures(cells: Sequence[Score]) -> list[Measure]:
    """What the `cells` of a task are read by: a text to be foretold has no accuracy but a perplexity."""
    answered = any(cell.acc is not None for cell in cells)
    known = any(cell.nll is not None for cell in cells)
    return ([ACCURACY] if answered else [PERPLEXITY] if known else []) + ([NLL] if known else [])


def alike(values: Sequence[float]) -> bool:
    """Whether there is no telling them apart; sums of shares are not exact."""
    return max(values) - min(values) <= _ALIKE


def over_seeds(values: Sequence[float], own: float | None = None) -> Estimate | None:
    """The mean and its standard error; of values all alike, the error that each has of its `own`."""
    if not values:
        return None
    error = own if alike(values) else stdev(values) / math.sqrt(len(values))
    return Estimate(mean(values), error)
