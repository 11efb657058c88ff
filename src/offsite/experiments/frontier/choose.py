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
from offsite.results.measures import (
    ACCURACY,
    fall_of,
    gain_of,
    gap_of,
    judged_by,
    loss_of,
    over_tasks,
    rows_of,
)
from offsite.results.schema import RowKey
from offsite.results.statistics import Estimate

ESTIMATES = ("cosine", "relative_error", "loss_gap")
"""Of the gradients and the loss on public text (see `owner.fidelity`)."""
ZERO_SHOT = "zero_shot_nll"
"""The answer nll of the emulator as it is sent, on the mean of the tasks."""

ScoresByRow = Mapping[RowKey, Mapping[str, Mapping[str, Any]]]
"""Scores by row and task, as JSON has them."""
_AROUND: tuple[RowKey, ...] = ("zero_shot", "plugged_in")
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
    loss: Estimate | None = None
    """How much worse plugged in is than fine-tuned: nats of choice nll on the mean of tasks that have choices,
    or else of answer nll."""
    gap: Estimate | None = None
    """How much worse emulator tuned is than plugged in, likewise."""
    fall: Estimate | None = None
    """How much worse zero-shot is than fine-tuned, likewise: what fine-tuning gains."""
    gain: Estimate | None = None
    """The share of the fall that plugged in keeps; None where there is nothing to keep."""
    reached: float | None = None
    """How far plugged in lies below zero-shot, in the same nats."""
    loss_points: Estimate | None = None
    """The loss in points of accuracy, on the mean of tasks that have one."""
    gap_points: Estimate | None = None
    """The gap in points, likewise."""

    def scored(self, rows: ScoresByRow, ends: ScoresByRow) -> FrontierPoint:
        """The point with its three `rows`, measured between the `ends` zero-shot and fine-tuned."""
        five = rows_of({**ends, **rows})
        tasks = list(five["zero_shot"])
        answered = [task for task in tasks if five["plugged_in"][task].acc is not None]
        measure, judged = judged_by(five.values(), tasks)
        zero, plugged = (over_tasks(five, row, judged, measure) for row in _AROUND)
        return replace(
            self,
            rows=rows,
            loss=loss_of(five, judged, measure),
            gap=gap_of(five, judged, measure),
            fall=fall_of(five, judged, measure),
            gain=gain_of(five, judged, measure),
            reached=zero.value - plugged.value if zero and plugged else None,
            loss_points=loss_of(five, answered, ACCURACY),
            gap_points=gap_of(five, answered, ACCURACY),
        )

    @property
    def open(self) -> bool:
        """Whether it could be scored next."""
        return self.rows is None and not self.failed


@dataclass(frozen=True)
class Amount:
    """So many nats, or such a share of what fine-tuning gains."""

    value: float
    share: bool = False

    @classmethod
    def of(cls, word: str) -> Amount:
        """Read `0.05`, nats, or `5%`, of what fine-tuning gains."""
        number = word.strip()
        try:
            value = float(number.removesuffix("%"))
        except ValueError as error:
            raise UserError(f"Nats are written as 0.05, a share of the gain as 5%, not {word!r}.") from error
        return cls(value / 100, share=True) if number.endswith("%") else cls(value)

    def nats(self, point: FrontierPoint) -> float | None:
        """The amount for a `point`; None of a share where fine-tuning gains nothing beyond its error."""
        if not self.share:
            return self.value
        return self.value * point.fall.value if point.fall and point.fall.above_error else None

    def __str__(self) -> str:
        return f"{100 * self.value:g}% of what fine-tuning gains" if self.share else f"{self.value:g} nats"


@dataclass(frozen=True)
class Wish:
    """What is asked of an emulator; None: nothing."""

    min_gap: Amount | None = None
    """At least so much worse is the emulator tuned than plugged in."""
    max_loss: Amount | None = None
    """At most so much worse is plugged in than fine-tuned."""

    def __post_init__(self) -> None:
        loss, gap = self.max_loss, self.min_gap
        if loss is not None and not 0 <= loss.value <= (1 if loss.share else 100):
            raise UserError(f"The loss is from 0 to 100 nats, or up to 100% of the gain, not '{_word(loss)}'.")
        if gap is not None and not -100 <= gap.value <= 100:
            raise UserError(f"The gap is of up to 100 nats or 10000% of the gain, not '{_word(gap)}'.")

    def __bool__(self) -> bool:
        return self.min_gap is not None or self.max_loss is not None

    def lacks_gap(self, point: FrontierPoint) -> float:
        """The nats of the gap that are lacking; infinite where there is nothing to tell by."""
        return self._lacking(self.min_gap, point, point.gap, 1)

    def exceeds_loss(self, point: FrontierPoint) -> float:
        """The nats of the loss beyond those granted; infinite where there is nothing to tell by."""
        return self._lacking(self.max_loss, point, point.loss, -1)

    def lacks(self, point: FrontierPoint) -> float:
        """How far a `point` is from the wish, in nats of both; 0: it is met."""
        return self.lacks_gap(point) + self.exceeds_loss(point)

    def within_error(self, point: FrontierPoint) -> bool:
        """Whether the `point` meets the wish, but one of its figures by less than its standard error."""
        for amount, had in ((self.min_gap, point.gap), (self.max_loss, point.loss)):
            wanted = None if amount is None else amount.nats(point)
            if wanted is not None and had and had.stderr is not None and abs(had.value - wanted) < had.stderr:
                return True
        return False

    @staticmethod
    def _lacking(amount: Amount | None, point: FrontierPoint, had: Estimate | None, sign: int) -> float:
        if amount is None:
            return 0.0
        wanted = amount.nats(point)
        if had is None or wanted is None:
            return float("inf")
        short = sign * (wanted - had.value)
        return short if short > _HAIR else 0.0


def _word(amount: Amount) -> str:
    return f"{100 * amount.value:g}%" if amount.share else f"{amount.value:g}"


def next_to_score(points: Sequence[FrontierPoint], wish: Wish) -> int:
    """The place of the emulator to score next, by what they store: the ends, then the middle of an interval.

    That is the interval in which the gap turns from enough to too small; else that in which the loss turns from
    too large to small enough; else, as without a wish, the widest.
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
        return wish.lacks_gap(point) == 0, wish.exceeds_loss(point) == 0

    gap_turns = [(low, high) for low, high in spans if meets(low)[0] and not meets(high)[0]]
    loss_turns = [(low, high) for low, high in spans if not meets(low)[1] and meets(high)[1]]
    low, high = max(gap_turns or loss_turns or spans, key=lambda span: span[1] - span[0])
    return order[(low + high) // 2]


def undominated(points: Sequence[FrontierPoint]) -> list[int]:
    """The places of the scored points that no other equals in loss and gap and beats in one of them."""
    known = {
        place: (point.reached, point.gap.value if point.gap else 0.0)
        for place, point in enumerate(points)
        if point.reached is not None
    }
    return [
        place
        for place, (reached, gap) in known.items()
        if not any(r >= reached and g >= gap and (r, g) != (reached, gap) for r, g in known.values())
    ]


def choose(points: Sequence[FrontierPoint], wish: Wish) -> tuple[int | None, int | None]:
    """The place of the best plugged in that meets the wish, or else of the one that comes closest to it."""
    known = [place for place, point in enumerate(points) if point.reached is not None]
    if not wish or not known:
        return None, None
    closest = min(known, key=lambda place: (wish.lacks(points[place]), -(points[place].reached or 0.0)))
    lacks = wish.lacks(points[closest])
    if lacks == 0:
        return closest, None
    return None, closest if lacks < float("inf") else None


def mean(rows: ScoresByRow | None, row: RowKey, score: str) -> float | None:
    """The mean of a score over the tasks of a row that have it."""
    scores = [cell[score] for cell in (rows or {}).get(row, {}).values()]
    values = [value for value in scores if value is not None]
    return sum(values) / len(values) if values else None
