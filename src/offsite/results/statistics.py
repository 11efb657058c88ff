"""Estimates: numbers with their standard errors, their means, and the gain of plugging in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_ALIKE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, where one is known."""

    value: float
    stderr: float | None

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference, as of independent samples.

        The rows answer the same questions, so their errors go together and the true error is usually smaller.
        """
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
    stderr = estimates[0].stderr if alike else stdev(values) / math.sqrt(len(values))
    return SeedMean(fmean(values), stderr, len(values), alike)


def gain(zero: Estimate, tuned: Estimate, plugged: Estimate) -> Estimate | None:
    """Compute (zero-shot - plugged in) / (zero-shot - fine-tuned) of the nll; 1: all that fine-tuning gains.

    The error is by the delta method. None where fine-tuning's own gain is not clear.
    """
    fall = zero.value - tuned.value
    errors = (zero.stderr, tuned.stderr, plugged.stderr)
    known = [error for error in errors if error is not None]
    if fall <= 0 or (len(known) == len(errors) and not (zero - tuned).clear):
        return None
    part = (zero.value - plugged.value) / fall
    if len(known) < len(errors):
        return Estimate(part, None)
    return Estimate(part, math.hypot((1 - part) * known[0], part * known[1], known[2]) / fall)


def gain_over_seeds(seeds: Iterable[Sequence[Estimate | None]]) -> SeedMean | None:
    """The mean gain, of the nll of zero-shot, fine-tuned and plugged in for each seed.

    A seed that lacks one is left out. None where the gain of one is not clear: the others would flatter.
    """
    gains = []
    for zero, tuned, plugged in seeds:
        if zero and tuned and plugged:
            gains.append(gain(zero, tuned, plugged))
    known = [each for each in gains if each]
    return over_seeds(known) if len(known) == len(gains) else None
