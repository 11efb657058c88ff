"""The scores of a task as people read them, and what becomes of them over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from offsite.report.results import Cell
from offsite.report.verdict import Estimate


@dataclass(frozen=True)
class Measure:
    """One score of a task as people read it."""

    caption: str
    hint: str
    digits: int
    of: Callable[[Cell], Estimate | None]


def _share(cell: Cell) -> Estimate | None:
    return None if cell.acc is None else Estimate(100 * cell.acc, _times(100, cell.acc_stderr))


def _nll(cell: Cell) -> Estimate | None:
    return None if cell.nll is None else Estimate(cell.nll, cell.nll_stderr)


def _perplexity(cell: Cell) -> Estimate | None:
    """Its error by the delta method."""
    if cell.nll is None or cell.nll > 700:
        return None
    value = math.exp(cell.nll)
    return Estimate(value, _times(value, cell.nll_stderr))


def _times(scale: float, error: float | None) -> float | None:
    return None if error is None else scale * error


ACCURACY = Measure("Accuracy, %", "higher is better", 1, _share)
NLL = Measure("Answer nll, nats per token", "lower is better", 2, _nll)
PERPLEXITY = Measure("Perplexity", "lower is better", 2, _perplexity)


def measures(cells: Sequence[Cell]) -> list[Measure]:
    """What the `cells` of a task are read by: a text to be foretold has no accuracy but a perplexity."""
    answered = any(cell.acc is not None for cell in cells)
    known = any(cell.nll is not None for cell in cells)
    return ([ACCURACY] if answered else [PERPLEXITY] if known else []) + ([NLL] if known else [])


def over_seeds(values: Sequence[float], own: float | None = None) -> Estimate | None:
    """The mean and its standard error; of values all alike, the error that each has of its `own`."""
    if not values:
        return None
    spread = stdev(values) if len(values) > 1 else 0.0
    error = spread / math.sqrt(len(values)) if spread else own
    return Estimate(mean(values), error)
