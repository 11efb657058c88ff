"""Which emulators a frontier scores in full, and which one satisfies the owner's wish.

What plugged in gains rises with what an emulator stores, and its gap falls (docs/LOG.md): bisecting on what is
stored finds where a wish turns from met to unmet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from offsite.errors import UserError
from offsite.experiments.frontier.grid import Settings
from offsite.results.measures import ACCURACY, GAIN_ROWS, NLL, gain_of, gap_of, over_tasks, rows_of
from offsite.results.schema import RowKey
from offsite.results.statistics import Estimate

ESTIMATES = ("cosine", "relative_error", "loss_gap")
"""Of the gradients and the loss on public text (see `owner.fidelity`)."""
ZERO_SHOT = "zero_shot_nll"
"""The answer nll of the emulator as it is sent, on the mean of the tasks."""

ScoresByRow = Mapping[RowKey, Mapping[str, Mapping[str, Any]]]
"""Scores by row and task, as JSON has them."""
_HAIR = 1e-9  # sums of shares are not exact


@dataclass(frozen=True)
class FrontierPoint:
    """One emulator: how it was made, its estimates, and its scores if it was scored."""

    settings: Settings
    stored: float
    """Parameters stored in its middle, as a share of the model's middle."""
    estimate: Mapping[str, float]
    digest: str = ""
    """Of all its tensors."""
    rows: ScoresByRow | None = None
    failed: bool = False
    """Whether it was tried and there are no rows of it."""
    gap: float | None = None
    """Accuracy points that emulator tuned lies below plugged in, on the mean of tasks that have an accuracy."""
    gap_stderr: float | None = None
    gap_nll: float | None = None
    """How far its answer nll lies above that of plugged in, nats a token."""
    gain: float | None = None
    """The share of fine-tuning's fall of the answer nll that plugged in reaches; None where that is no fall."""
    gain_stderr: float | None = None
    fall: float | None = None
    """How far plugged in lowers the answer nll below zero-shot's, nats a token."""

    def scored(self, rows: ScoresByRow, ends: ScoresByRow) -> FrontierPoint:
        """The point with its three `rows`, measured between the `ends` zero-shot and fine-tuned."""
        five = rows_of({**ends, **rows})
        tasks = list(five["zero_shot"])
        answered = [task for task in tasks if five["plugged_in"][task].acc is not None]
        gap, gap_nll = gap_of(five, answered, ACCURACY), gap_of(five, tasks, NLL)
        gain = gain_of(five, tasks)
        zero, _, plugged = (over_tasks(five, row, tasks, NLL) for row in GAIN_ROWS)
        return replace(
            self,
            rows=rows,
            gap=_value(gap),
            gap_stderr=gap.stderr if gap else None,
            gap_nll=_value(gap_nll),
            gain=_value(gain),
            gain_stderr=gain.stderr if gain else None,
            fall=zero.value - plugged.value if zero and plugged else None,
        )

    @property
    def open(self) -> bool:
        """Whether it could be scored next."""
        return self.rows is None and not self.failed

    @property
    def cost(self) -> float | None:
        """The gap: accuracy points, or nats where there is no accuracy."""
        return self.gap_nll if self.gap is None else self.gap


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


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

    def within_error(self, point: FrontierPoint) -> bool:
        """Whether the `point` meets the wish, but one of its figures by less than its standard error."""
        margins = []
        if self.min_gap is not None and point.gap is not None:
            margins.append((point.gap - self.min_gap, point.gap_stderr))
        if self.max_loss is not None and point.gain is not None:
            margins.append((point.gain - 1 + self.max_loss, point.gain_stderr))
        return any(error is not None and margin < error for margin, error in margins)

    def lacks(self, point: FrontierPoint) -> float:
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


def next_to_score(points: Sequence[FrontierPoint], wish: Wish) -> int:
    """The place of the emulator to score next, by what they store: the ends, then the middle of an interval.

    That is the interval in which the gap turns from enough to too small; else that in which the gain turns from
    too small to enough; else, as without a wish, the widest.
    """
    places = [place for place, point in enumerate(points) if not point.failed]
    order = sorted(places, key=lambda place: (points[place].stored, points[place].estimate.get("cosine", 0.0)))
    known = [at for at, place in enumerate(order) if points[place].rows is not None]
    for end in (0, len(order) - 1):
        if end not in known:
            return order[end]
    spans = [(low, high) for low, high in pairwise(known) if high - low > 1]

    def meets(at: int) -> tuple[bool, bool]:
        point = points[order[at]]
        return wish.lacks_gap(point.gap) == 0, wish.lacks_gain(point.gain) == 0

    gap_turns = [(low, high) for low, high in spans if meets(low)[0] and not meets(high)[0]]
    gain_turns = [(low, high) for low, high in spans if not meets(low)[1] and meets(high)[1]]
    low, high = max(gap_turns or gain_turns or spans, key=lambda span: span[1] - span[0])
    return order[(low + high) // 2]


def undominated(points: Sequence[FrontierPoint]) -> list[int]:
    """The places of the scored points that no other equals in gain and gap and beats in one of them."""
    known = {place: (p.fall, p.cost or 0.0) for place, p in enumerate(points) if p.fall is not None}
    return [
        place
        for place, (fall, cost) in known.items()
        if not any(f >= fall and c >= cost and (f, c) != (fall, cost) for f, c in known.values())
    ]


def choose(points: Sequence[FrontierPoint], wish: Wish) -> tuple[int | None, int | None]:
    """The place of the best plugged in that meets the wish, or else of the one that comes closest to it."""
    known = [place for place, point in enumerate(points) if point.fall is not None]
    if not wish or not known:
        return None, None
    closest = min(known, key=lambda place: (wish.lacks(points[place]), -(points[place].fall or 0.0)))
    lacks = wish.lacks(points[closest])
    if lacks == 0:
        return closest, None
    return None, closest if lacks < float("inf") else None


def mean(rows: ScoresByRow | None, row: RowKey, score: str) -> float | None:
    """The mean of a score over the tasks of a row that have it."""
    scores = [cell[score] for cell in (rows or {}).get(row, {}).values()]
    values = [value for value in scores if value is not None]
    return sum(values) / len(values) if values else None


def _lacking(wanted: float | None, had: float | None) -> float:
    if wanted is None:
        return 0.0
    short = float("inf") if had is None else wanted - had
    return short if short > _HAIR else 0.0
