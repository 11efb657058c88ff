"""Which emulator a wish takes, and whether a cheap estimate may say which ones to score.

TRUSTED is used only where it predicts: over four points or more, its rank correlation with how far plugged in
lowers the answer nll (and with the gap, where one is wished) has the right sign and is NEEDED at the least.
That is 0.8, and more over few points, so that it would come by chance in one of twenty times at the most
(critical values of Spearman, one-sided). It is named beforehand: the best of several would get there by chance
more often. How the other estimates do is shown, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import StatisticsError, correlation
from typing import Any

from offsite.errors import UserError
from offsite.experiments.frontier.grid import Settings
from offsite.results.schema import Results
from offsite.results.statistics import estimate, judge

ESTIMATES = ("cosine", "relative_error", "loss_gap")
"""Of the gradients and the loss on public text (see `owner.fidelity`)."""
ZERO_SHOT = "zero_shot_nll"
"""The answer nll of the emulator as it is sent, on the mean of the tasks: an estimate too."""
TRUSTED = "cosine"
"""The estimate that may choose; more of it promises more plugged in."""
FEWEST = 4
"""Points without which nothing is said of an estimate."""
NEEDED = {4: 1.0, 5: 0.9, 6: 0.829}
"""The rank correlation that it must have to be used, by the number of points; else 0.8."""

Rows = Mapping[str, Any]
"""Scores by row and task."""
_HAIR = 1e-9  # sums of shares are not exact


@dataclass(frozen=True)
class Point:
    """One emulator: how it was made, what is cheap to know of it, and how it did if it was scored."""

    settings: Settings
    stored: float
    """Parameters stored in its middle, as a share of the model's middle."""
    estimate: Mapping[str, float]
    digest: str = ""
    """Of all its tensors."""
    rows: Rows | None = None
    failed: bool = False
    """Whether it was tried and there are no rows of it."""
    gap: float | None = None
    """Δ: plugged in minus emulator tuned, accuracy points, on the mean of the tasks that have an accuracy."""
    gap_stderr: float | None = None
    gap_nll: float | None = None
    """The same in nats a token of the answer: below zero the full model is better."""
    gain: float | None = None
    """The share of fine-tuning's fall of the answer nll that plugged in reaches; None where that is no fall."""
    gain_stderr: float | None = None
    fall: float | None = None
    """How far plugged in lowers the answer nll below zero-shot's, nats a token."""

    def scored(self, rows: Rows, ends: Rows) -> Point:
        """The point with its three `rows`, measured between the `ends` zero-shot and fine-tuned."""
        results = Results.read({"rows": {**ends, **rows}, "keep": 1.0, "method": ""})
        said = judge(results, results.tasks)
        zero, plugged = (estimate(results, row, results.tasks, "nll") for row in ("zero_shot", "plugged_in"))
        counted = [task for task in results.tasks if results.rows["plugged_in"][task].acc is not None]
        gap = judge(results, counted).gap_acc if counted else None
        return replace(
            self,
            rows=rows,
            gap=None if gap is None else 100 * gap.value,
            gap_stderr=None if gap is None or gap.stderr is None else 100 * gap.stderr,
            gap_nll=None if said.gap_nll is None else said.gap_nll.value,
            gain=None if said.share is None else said.share.value,
            gain_stderr=None if said.share is None else said.share.stderr,
            fall=zero.value - plugged.value if zero and plugged else None,
        )

    @property
    def open(self) -> bool:
        """Whether it could be scored next."""
        return self.rows is None and not self.failed

    @property
    def cost(self) -> float | None:
        """How far the emulator tuned is behind: accuracy points, or nats where there is no accuracy."""
        return self.gap if self.gap is not None or self.gap_nll is None else -self.gap_nll


@dataclass(frozen=True)
class Wish:
    """What is asked of an emulator; None: nothing."""

    min_gap: float | None = None
    """At least so many accuracy points lies the emulator tuned below plugged in."""
    max_loss: float | None = None
    """At most this share of fine-tuning's fall of the answer nll is lacking plugged in."""

    def __post_init__(self) -> None:
        if self.max_loss is not None and not 0 <= self.max_loss <= 1:
            raise UserError(
                "The loss is a share of what fine-tuning gains, from 0 to 1 or 0% to 100%, not "
                f"{self.max_loss:g}."
            )
        if self.min_gap is not None and not -100 <= self.min_gap <= 100:
            raise UserError(f"The gap is in accuracy points, up to 100 of them, not {self.min_gap:g}.")

    def __bool__(self) -> bool:
        return self.min_gap is not None or self.max_loss is not None

    def lacks_gap(self, gap: float | None) -> float:
        """The accuracy points that are lacking; infinite where there is no accuracy."""
        return _lacking(self.min_gap, gap)

    def lacks_gain(self, gain: float | None) -> float:
        """The percent of fine-tuning's fall lacking beyond those granted; infinite where it is none."""
        return _lacking(None if self.max_loss is None else 100 * (1 - self.max_loss), gain and 100 * gain)

    def within_error(self, point: Point) -> bool:
        """Whether the `point` meets the wish, but one of its figures by less than its standard error."""
        margins = []
        if self.min_gap is not None and point.gap is not None:
            margins.append((point.gap - self.min_gap, point.gap_stderr))
        if self.max_loss is not None and point.gain is not None:
            margins.append((point.gain - 1 + self.max_loss, point.gain_stderr))
        return any(error is not None and margin < error for margin, error in margins)

    def lacks(self, point: Point) -> float:
        """How far a `point` is from the wish: points of the gap plus percent of the fall; 0: it is met."""
        return self.lacks_gap(point.gap) + self.lacks_gain(point.gain)


def share(word: str) -> float:
    """The share that is written as `1%` or `0.01`; whether a bare 1 is 1% or all is anyone's guess."""
    number = word.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError as error:
        raise UserError(f"A share is written as 1% or 0.01, not {word!r}.") from error
    if value >= 1 and not number.endswith("%"):
        raise UserError(f"A share is written as 1% or 0.01; for {word!r} write {number}%.")
    if not 0 <= value <= 1:
        raise UserError(f"A share is from 0% to 100%, not {word!r}.")
    return value


def spread(count: int) -> list[int]:
    """The places of a row in an order that soon covers it: both ends, the middle, then the widest gaps."""
    order = [0, count - 1][:count]
    while len(order) < count:
        order.append(max(range(count), key=lambda place: min(abs(place - taken) for taken in order)))
    return order


def correlations(points: Sequence[Point]) -> dict[str, float | None]:
    """The rank correlation of each estimate with how far plugged in lowers the nll, over the scored points.

    None over fewer than three, and where all are alike.
    """
    names = dict.fromkeys(name for point in points for name in point.estimate)
    return {name: _correlation(points, name, "fall") for name in names}


def _correlation(points: Sequence[Point], name: str, outcome: str) -> float | None:
    pairs = [(point.estimate.get(name), getattr(point, outcome)) for point in points]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return rank_correlation([one for one, _ in known], [other for _, other in known])


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's, what is alike taking the mean of its ranks."""
    if len(one) < 3:
        return None
    try:
        return correlation(_ranks(one), _ranks(other))
    except StatisticsError:  # all alike
        return None


def predicts(points: Sequence[Point], wish: Wish) -> bool:
    """Whether TRUSTED ranks the scored points as they did in all that the `wish` hangs on."""
    count = sum(point.fall is not None for point in points)
    signed = [_correlation(points, TRUSTED, "fall") or 0.0]
    if wish.min_gap is not None:  # the truer an emulator, the less it lies behind
        signed.append(-(_correlation(points, TRUSTED, "cost") or 0.0))
    return count >= FEWEST and min(signed) >= NEEDED.get(count, 0.8) - _HAIR


def most_promising(points: Sequence[Point], wish: Wish) -> int:
    """The place of the point without a score that should come nearest to the wish, or do best without one.

    What is to be expected of it lies on the line through the scored points that TRUSTED puts before and after
    it.
    """
    import numpy as np

    scored = sorted((p for p in points if p.rows is not None), key=lambda point: point.estimate[TRUSTED])
    at = [point.estimate[TRUSTED] for point in scored]

    def expected(point: Point, values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.interp(point.estimate[TRUSTED], at, known)) if len(known) == len(at) else None

    def rank(place: int) -> tuple[float, float, float]:
        point = points[place]
        gap, gain, fall = (
            expected(point, [getattr(each, what) for each in scored]) for what in ("gap", "gain", "fall")
        )
        beyond = -point.estimate[TRUSTED]  # decides where no scored point comes after it
        return wish.lacks(replace(point, gap=gap, gain=gain)), -(fall or 0.0), beyond

    return min((place for place, point in enumerate(points) if point.open), key=rank)


def undominated(points: Sequence[Point]) -> list[int]:
    """The places of the scored points that no other equals in gain and gap and beats in one of them."""
    known = {place: (p.fall, p.cost or 0.0) for place, p in enumerate(points) if p.fall is not None}
    return [
        place
        for place, (fall, cost) in known.items()
        if not any(f >= fall and c >= cost and (f, c) != (fall, cost) for f, c in known.values())
    ]


def choose(points: Sequence[Point], wish: Wish) -> tuple[int | None, int | None]:
    """The place of the best plugged in that meets the wish, or else of the one that comes closest to it."""
    known = [place for place, point in enumerate(points) if point.fall is not None]
    if not wish or not known:
        return None, None
    closest = min(known, key=lambda place: (wish.lacks(points[place]), -(points[place].fall or 0.0)))
    lacks = wish.lacks(points[closest])
    if lacks == 0:
        return closest, None
    return None, closest if lacks < float("inf") else None


def mean(rows: Rows | None, row: str, score: str) -> float | None:
    """The mean of a score over the tasks of a row that have it."""
    values = [cell[score] for cell in (rows or {}).get(row, {}).values() if cell[score] is not None]
    return sum(values) / len(values) if values else None


def _lacking(wanted: float | None, had: float | None) -> float:
    if wanted is None:
        return 0.0
    short = float("inf") if had is None else wanted - had
    return short if short > _HAIR else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; values that are alike share the mean of theirs."""
    return [
        (sum(other < value for other in values) + sum(other <= value for other in values) + 1) / 2
        for value in values
    ]
