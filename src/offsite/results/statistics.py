"""Estimates: numbers with their standard errors, and their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_ALIKE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, where one is known."""

    value: float
    stderr: float | None

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference, as of independent samples."""
        known = self.stderr is not None and other.stderr is not None
        stderr = math.hypot(self.stderr or 0.0, other.stderr or 0.0) if known else None
        return Estimate(self.value - other.value, stderr)

    def times(self, scale: float) -> Estimate:
        """In another unit, or of another sign."""
        return Estimate(scale * self.value, None if self.stderr is None else abs(scale) * self.stderr)

    @property
    def clear(self) -> bool:
        """Whether it is further from zero than its standard error; never so where that is unknown."""
        return self.stderr is not None and abs(self.value) > self.stderr

    @property
    def above_error(self) -> bool:
        """Whether it is above zero by more than its standard error, where that is known."""
        return self.value > (self.stderr or 0.0)

    def show(self, digits: int = 2, scale: float = 1.0) -> str:
        """The value times `scale`."""
        return f"{self.value * scale:z.{digits}f}".replace("-", "−")

    def spread(self, digits: int = 2, scale: float = 1.0) -> str:
        """The standard error as `± 0.12`, or nothing."""
        return "" if self.stderr is None else f"± {self.stderr * scale:.{digits}f}"


@dataclass(frozen=True)
class SeedMean(Estimate):
    """A mean over seeds. Its error is over them, or over questions where they do not differ."""

    seeds: int = 1
    over_questions: bool = True

    @property
    def mark(self) -> str:
        """A dagger where the error is that over the questions."""
        return "†" if self.over_questions else ""

    def times(self, scale: float) -> SeedMean:
        """In another unit."""
        scaled = super().times(scale)
        return SeedMean(scaled.value, scaled.stderr, self.seeds, self.over_questions)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; 0 of a single one, whose spread is not known."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean, its error as of independent samples; None where one is missing."""
    known = [each for each in estimates if each is not None]
    if not known or len(known) < len(estimates):
        return None
    errors = [each.stderr for each in known if each.stderr is not None]
    stderr = math.hypot(*errors) / len(known) if len(errors) == len(known) else None
    return Estimate(fmean(each.value for each in known), stderr)


def over_seeds(estimates: Sequence[Estimate]) -> SeedMean | None:
    """The mean over seeds and its error; where all are alike, the error of the first."""
    if not estimates:
        return None
    values = [each.value for each in estimates]
    alike = max(values) - min(values) <= _ALIKE  # sums of shares are not exact
    stderr = estimates[0].stderr if alike else standard_error(values)
    return SeedMean(fmean(values), stderr, len(values), alike)
