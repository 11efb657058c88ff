"""What the five rows of a comparison mean, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offsite.results.measures import ACCURACY, GAIN_ROWS, NLL, gain_of, gap_of, over_tasks
from offsite.results.schema import Results
from offsite.results.statistics import Estimate


@dataclass(frozen=True)
class Verdict:
    """The reading of one task, or of the mean of several; a part that cannot be computed is None."""

    headline: str
    support: str | None
    gain: Estimate | None
    """How much of fine-tuning's gain in nll over zero-shot the plugged-in model reaches; 1 is all of it."""
    gap_acc: Estimate | None
    """How far the emulator tuned lies below plugged in, in points of accuracy."""
    gap_nll: Estimate | None
    """How far its answer nll lies above that of plugged in, in nats per token."""
    size: str
    """How large the gap is against its standard error."""
    meaning: str
    """What the gap means to the model owner."""


def judge(results: Results, tasks: Sequence[str]) -> Verdict:
    """Read the five rows on `tasks`, taken as their mean."""
    rows = results.rows
    zero, tuned, plugged = (over_tasks(rows, row, tasks, NLL) for row in GAIN_ROWS)
    gap_acc, gap_nll = gap_of(rows, tasks, ACCURACY), gap_of(rows, tasks, NLL)
    support, gain = None, gain_of(rows, tasks)
    headline = "The answer nll was not recorded in every row, so there is no gain to compute."
    if zero and tuned and plugged:
        headline = _headline(zero - tuned, zero - plugged, gain)
        support = _support(zero, tuned, plugged, len(tasks))
    size, meaning = _size(gap_acc, gap_nll), _meaning(gap_acc, gap_nll)
    return Verdict(headline, support, gain, gap_acc, gap_nll, size, meaning)


def _headline(fall: Estimate, reached: Estimate, gain: Estimate | None) -> str:
    if fall.value <= 0:
        return "Fine-tuning gains nothing here, so there is no gain for the adapter to reach."
    if gain is None:
        return "Fine-tuning gains less than its standard error: too little to measure the adapter against."
    if reached.stderr is not None and not reached.clear:
        return "Plugged in, the adapter changes less than its standard error."
    if reached.value <= 0:
        return "Plugged in, the adapter makes the right answers less likely than before."
    if gain.value >= 1:
        return "Plugged in, the adapter reaches all that fine-tuning gains."
    return f"Plugged in, the adapter reaches {gain.show(0, 100)}% of what fine-tuning gains."


def _support(zero: Estimate, tuned: Estimate, plugged: Estimate, tasks: int) -> str:
    moved = "falls" if plugged.value < zero.value else "goes"
    mean = f", on the mean of {tasks} tasks" if tasks > 1 else ""
    return (
        f"The answer nll {moved} from {zero.show()} at zero-shot to {plugged.show()} plugged in; "
        f"fine-tuning inside the full model reaches {tuned.show()}{mean}."
    )


def _size(gap_acc: Estimate | None, gap_nll: Estimate | None) -> str:
    """How each gap compares with its standard error."""
    known = [(name, gap) for name, gap in (("accuracy", gap_acc), ("answer nll", gap_nll)) if gap]
    parts = [f"in {name} {_against_error(gap)}" for name, gap in known]
    return f"The gap {', and '.join(parts)}." if parts else "These rows have no scores to compute a gap from."


def _against_error(gap: Estimate) -> str:
    if gap.stderr is None:
        return "has no standard error to compare it with"
    if not gap.clear:
        return "does not exceed its standard error"
    if not gap.stderr:
        return "exceeds its standard error, which is zero"
    return f"is {abs(gap.value) / gap.stderr:.1f} times its standard error"


def _meaning(gap_acc: Estimate | None, gap_nll: Estimate | None) -> str:
    """What a gap of more than two standard errors means; both are above zero where the full model is better."""
    gaps = [gap for gap in (gap_acc, gap_nll) if gap]
    if not any(gap.stderr is not None for gap in gaps):
        return "Without a standard error it cannot be told whether that is chance."
    better = {gap.value > 0 for gap in gaps if gap.stderr and abs(gap.value) > 2 * gap.stderr}
    if better == {True}:
        return "The tuned emulator does not replace the full model, which its owner keeps."
    if better == {False}:
        return "The tuned emulator does better than the full model: its owner has given too much away."
    if better:
        return "Accuracy and answer nll point in opposite directions: no verdict on what the owner keeps."
    return "The tuned emulator may do as well as the full model, or the test is too small to tell."
