"""What the five rows say, in plain words and with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offsite.results.schema import Results, RowKey


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

    def show(self, digits: int = 2, scale: float = 1.0, sign: str = "") -> str:
        """The value times `scale`; `sign="+"` also marks what is above zero."""
        return f"{self.value * scale:{sign}z.{digits}f}".replace("-", "−")

    def spread(self, digits: int = 2, scale: float = 1.0) -> str:
        """The standard error as `± 0.12`, or nothing."""
        return "" if self.stderr is None else f"± {self.stderr * scale:.{digits}f}"


@dataclass(frozen=True)
class Verdict:
    """The reading of one task, or of the mean of several; a part that cannot be computed is None."""

    headline: str
    support: str | None
    share: Estimate | None
    """How much of fine-tuning's gain in nll over zero-shot the plugged-in model reaches; 1 is all of it."""
    gap_acc: Estimate | None
    """Δ: plugged in minus emulator tuned, as a share of 1; above zero the full model is better."""
    gap_nll: Estimate | None
    """Δ in nats per token; below zero the full model is better."""
    gap: str
    """How large the gap is against its standard error."""
    meaning: str
    """What the gap says to the model owner."""


def estimate(results: Results, row: RowKey, tasks: Sequence[str], score: str) -> Estimate | None:
    """The mean of a `score` over `tasks`; None where a task lacks it."""
    cells = [results.rows[row][task] for task in tasks]
    values = [value for cell in cells if (value := getattr(cell, score)) is not None]
    if len(values) < len(cells):
        return None
    # Of a single question the spread is unknown, and the standard error is written as 0.
    known = [cell for cell in cells if cell.n != 1 and getattr(cell, f"{score}_stderr") is not None]
    errors = [getattr(cell, f"{score}_stderr") for cell in known]
    stderr = math.hypot(*errors) / len(tasks) if len(errors) == len(cells) else None
    return Estimate(sum(values) / len(tasks), stderr)


def judge(results: Results, tasks: Sequence[str]) -> Verdict:
    """Read the five rows on `tasks`, taken as their mean."""
    zero, tuned, plugged = (
        estimate(results, row, tasks, "nll") for row in ("zero_shot", "fine_tuned", "plugged_in")
    )
    gap_acc, gap_nll = (_gap(results, tasks, score) for score in ("acc", "nll"))
    support = None
    reached = None
    headline = "The answer nll was not recorded in every row, so the gain cannot be told."
    if zero and tuned and plugged:
        reached = share(zero, tuned, plugged)
        headline = _headline(zero - tuned, zero - plugged, reached)
        support = _support(zero, tuned, plugged, len(tasks))
    return Verdict(
        headline, support, reached, gap_acc, gap_nll, _size(gap_acc, gap_nll), _meaning(gap_acc, gap_nll)
    )


def _gap(results: Results, tasks: Sequence[str], score: str) -> Estimate | None:
    plugged, emulator = (estimate(results, row, tasks, score) for row in ("plugged_in", "emulator_tuned"))
    return plugged - emulator if plugged and emulator else None


def share(zero: Estimate, tuned: Estimate, plugged: Estimate) -> Estimate | None:
    """(zero - plugged) / (zero - tuned), its error by the delta method; None where that gain is not clear."""
    gain = zero.value - tuned.value
    errors = (zero.stderr, tuned.stderr, plugged.stderr)
    known = [error for error in errors if error is not None]
    if gain <= 0 or (len(known) == len(errors) and not (zero - tuned).clear):
        return None
    part = (zero.value - plugged.value) / gain
    if len(known) < len(errors):
        return Estimate(part, None)
    return Estimate(part, math.hypot((1 - part) * known[0], part * known[1], known[2]) / gain)


def _headline(gain: Estimate, reached: Estimate, share: Estimate | None) -> str:
    if gain.value <= 0:
        return "Fine-tuning gains nothing here, so there is no gain for the adapter to reach."
    if share is None:
        return "Fine-tuning gains less than its standard error: too little to measure the adapter against."
    if reached.stderr is not None and not reached.clear:
        return "Plugged in, the adapter changes less than its standard error."
    if reached.value <= 0:
        return "Plugged in, the adapter makes the right answers less likely than before."
    if share.value >= 1:
        return "Plugged in, the adapter reaches all that fine-tuning gains."
    return f"Plugged in, the adapter reaches {share.show(0, 100)}% of what fine-tuning gains."


def _support(zero: Estimate, tuned: Estimate, plugged: Estimate, tasks: int) -> str:
    moved = "falls" if plugged.value < zero.value else "goes"
    mean = f", on the mean of {tasks} tasks" if tasks > 1 else ""
    return (
        f"The answer nll {moved} from {zero.show()} at zero-shot to {plugged.show()} plugged in; "
        f"fine-tuning inside the full model reaches {tuned.show()}{mean}."
    )


def _size(gap_acc: Estimate | None, gap_nll: Estimate | None) -> str:
    """How each gap stands against its standard error."""
    known = [(name, gap) for name, gap in (("accuracy", gap_acc), ("answer nll", gap_nll)) if gap]
    said = [f"in {name} {_against_error(gap)}" for name, gap in known]
    return f"The difference {', and '.join(said)}." if said else "No gap can be told from these rows."


def _against_error(gap: Estimate) -> str:
    if gap.stderr is None:
        return "has no standard error to hold it against"
    if not gap.clear:
        return "does not exceed its standard error"
    if not gap.stderr:
        return "exceeds its standard error, which is zero"
    return f"is {abs(gap.value) / gap.stderr:.1f} times its standard error"


def _meaning(gap_acc: Estimate | None, gap_nll: Estimate | None) -> str:
    """What the gap is worth, where it is two standard errors: accuracy counts upward, nll downward."""
    if not any(gap and gap.stderr is not None for gap in (gap_acc, gap_nll)):
        return "Without a standard error it cannot be told whether that is chance."
    clear = [gap for gap in (gap_acc, gap_nll) if gap and gap.stderr and abs(gap.value) > 2 * gap.stderr]
    better = {(gap.value > 0) == (gap is gap_acc) for gap in clear}
    if better == {True}:
        return "The tuned emulator does not replace the full model: its owner keeps something of worth."
    if better == {False}:
        return "The tuned emulator does better than the full model: its owner has given too much away."
    if better:
        return "Accuracy and answer nll point in opposite directions: no verdict on what the owner keeps."
    return "The tuned emulator may do as well as the full model, or the test is too small to tell."
