"""What the five rows of a comparison mean, in sentences: the loss, the gap, and what fine-tuning gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from offsite.results.measures import (
    ACCURACY,
    CHOICE,
    Measure,
    fall_of,
    gain_of,
    gap_of,
    judged_by,
    loss_of,
    nothing_to_keep,
    over_tasks,
)
from offsite.results.schema import Results, RowKey
from offsite.results.statistics import Estimate

_QUOTED: tuple[RowKey, ...] = ("zero_shot", "fine_tuned", "plugged_in")


@dataclass(frozen=True)
class Verdict:
    """The reading of one task, or of the mean of several; a part that cannot be computed is None."""

    headline: str
    support: str | None
    loss: Estimate | None
    """How much worse plugged in is than fine-tuned, in nats of `by`."""
    gap: Estimate | None
    """How much worse emulator tuned is than plugged in, likewise."""
    loss_points: Estimate | None
    """The loss in points of accuracy."""
    gap_points: Estimate | None
    """The gap in points of accuracy."""
    gain: Estimate | None
    """The share of what fine-tuning gains over zero-shot that plugged in keeps; 1 is all of it."""
    by: str
    """What the nats are of, choice nll or answer nll, and on which tasks where not on all."""
    digits: int
    """That show them."""
    size: str
    """How large the gap is against its standard error."""
    meaning: str
    """What the gap means to the model owner."""

    def as_json(self) -> dict[str, Any]:
        """What `results.json` says of a task: the headline, and loss, gap and gain with their errors."""
        figures = ("loss", "gap", "loss_points", "gap_points", "gain")
        known: dict[str, Estimate | None] = {name: getattr(self, name) for name in figures}
        words = {"by": self.by, "headline": self.headline}
        return words | {name: None if each is None else asdict(each) for name, each in known.items()}

    @property
    def lines(self) -> list[str]:
        """The loss, the gap and what they mean, for a screen."""
        known = [
            f"{name} {_in_words(nats, self.digits)} nats of {self.by}"
            + (f", {_in_words(points, 1)} points of accuracy" if points else "")
            for name, nats, points in (
                ("Loss", self.loss, self.loss_points),
                ("Gap", self.gap, self.gap_points),
            )
            if nats
        ]
        return [*known, self.headline]


def judge(results: Results, tasks: Sequence[str]) -> Verdict:
    """Read the five rows on `tasks`, taken as their mean."""
    rows = results.rows
    measure, judged = judged_by(rows.values(), tasks)
    answered = [task for task in tasks if any(row[task].acc is not None for row in rows.values())]
    loss, gap = loss_of(rows, judged, measure), gap_of(rows, judged, measure)
    points = [of(rows, answered, ACCURACY) if answered else None for of in (loss_of, gap_of)]
    gain = gain_of(rows, judged, measure)
    word = "choice nll" if measure is CHOICE else "answer nll"
    headline = f"The {word} was not recorded in every row, so there is no loss to compute."
    fall = fall_of(rows, judged, measure)
    if fall and loss:
        headline = _headline(fall, loss, gap, measure)
    return Verdict(
        headline, _support(results, judged, measure, word), loss, gap, points[0], points[1], gain,
        by=word if len(judged) == len(tasks) else f"{word} on {', '.join(judged)}", digits=measure.digits,
        size=_size(points[1], gap, word), meaning=_meaning(points[1], gap, word),
    )  # fmt: skip


def _headline(fall: Estimate, loss: Estimate, gap: Estimate | None, measure: Measure) -> str:
    if not fall.above_error:
        return nothing_to_keep(fall, measure)
    return f"{_lost(fall, loss, measure)}{_lacks(gap, measure)}."


def _lost(fall: Estimate, loss: Estimate, measure: Measure) -> str:
    of = f"of the {fall.show(measure.digits)} {measure.unit} that fine-tuning gains"
    size = _in_words(loss, measure.digits)
    if loss.value <= 0:
        return f"Plugged in, the adapter loses nothing {of}"
    if loss.value >= fall.value:
        return f"Plugged in, the adapter loses all {of}: {size}"
    return f"Plugged in, the adapter loses {size} {of}"


def _lacks(gap: Estimate | None, measure: Measure) -> str:
    if gap is None:
        return ""
    size = f"{abs(gap.value):.{measure.digits}f} {gap.spread(measure.digits)}".strip()
    return f"; the emulator alone is {size} {'worse' if gap.value >= 0 else 'better'}"


def _in_words(value: Estimate, digits: int) -> str:
    return f"{value.show(digits)} {value.spread(digits)}".strip()


def _support(results: Results, tasks: Sequence[str], measure: Measure, word: str) -> str | None:
    zero, tuned, plugged = (over_tasks(results.rows, row, tasks, measure) for row in _QUOTED)
    if not (zero and tuned and plugged):
        return None
    moved = "falls" if plugged.value < zero.value else "goes"
    mean = f", on the mean of {len(tasks)} tasks" if len(tasks) > 1 else ""
    shown = [each.show(measure.digits) for each in (zero, plugged, tuned)]
    return (
        f"The {word} {moved} from {shown[0]} at zero-shot to {shown[1]} plugged in; "
        f"fine-tuning inside the full model reaches {shown[2]}{mean}."
    )


def _size(points: Estimate | None, nats: Estimate | None, word: str) -> str:
    """How each gap compares with its standard error."""
    known = [(name, gap) for name, gap in ((word, nats), ("accuracy", points)) if gap]
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


def _meaning(points: Estimate | None, nats: Estimate | None, word: str) -> str:
    """What a gap of more than two standard errors means; both are above zero where the full model is better."""
    gaps = [gap for gap in (points, nats) if gap]
    if not any(gap.stderr is not None for gap in gaps):
        return "Without a standard error it cannot be told whether that is chance."
    better = {gap.value > 0 for gap in gaps if gap.stderr and abs(gap.value) > 2 * gap.stderr}
    if better == {True}:
        return "The tuned emulator does not replace the full model, which its owner keeps."
    if better == {False}:
        return "The tuned emulator does better than the full model: its owner has given too much away."
    if better:
        return f"Accuracy and {word} point in opposite directions: no verdict on what the owner keeps."
    return "The tuned emulator may do as well as the full model, or the test is too small to tell."
