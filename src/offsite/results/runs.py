"""The runs of a study: by method and budget, and as means over their seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pydantic import BaseModel

from offsite.results.measures import Measure, Rows, fall_of, gain_of, gap_of, loss_of, over_tasks
from offsite.results.schema import ROWS, RowKey, Score
from offsite.results.statistics import Estimate, SeedMean, over_seeds

_Of = Callable[[Rows, Sequence[str], Measure], Estimate | None]


class Run(BaseModel):
    """One row or more of one method (none: of the model itself) on one task with one seed."""

    method: str
    task: str
    seed: int = 0
    keep: float | None = None
    stored: float | None = None
    zero_shot: Score | None = None
    fine_tuned: Score | None = None
    emulator_zero_shot: Score | None = None
    emulator_tuned: Score | None = None
    plugged_in: Score | None = None

    @property
    def scores(self) -> Mapping[RowKey, Score]:
        """The rows that it has."""
        return {row.key: score for row in ROWS if (score := getattr(self, row.key))}


@dataclass(frozen=True)
class Group:
    """The runs of one method on one budget, beside those of the model itself."""

    method: str
    """Empty: the model itself."""
    keep: float | None  # None: the method's knobs alone say how much stays
    runs: tuple[Run, ...]
    ends: tuple[Run, ...]

    @property
    def stored(self) -> float:
        """Of the middle, on average."""
        stored = [run.keep if run.stored is None else run.stored for run in self.runs]
        return fmean(share for share in stored if share is not None)

    @property
    def budget(self) -> float:
        """What was asked for, or else stored."""
        return self.stored if self.keep is None else self.keep

    @property
    def seeds(self) -> int:
        """How many different ones."""
        return len({run.seed for run in self.runs})

    @property
    def itself(self) -> Group:
        """The model itself, as a group of its own."""
        return Group("", None, self.ends, self.ends)

    def on(self, task: str) -> Group:
        """The runs on one task."""
        here, ends = ([run for run in runs if run.task == task] for runs in (self.runs, self.ends))
        return Group(self.method, self.keep, tuple(here), tuple(ends))

    def row(self, row: RowKey, tasks: Sequence[str], measure: Measure) -> SeedMean | None:
        """The mean over the seeds that have it, of the mean of a row over `tasks`."""
        return self._mean(lambda rows, of, by: over_tasks(rows, row, of, by), tasks, measure)

    def loss(self, tasks: Sequence[str], measure: Measure) -> SeedMean | None:
        """How much worse plugged in is than fine-tuned with the same seed."""
        return self._mean(loss_of, tasks, measure)

    def gap(self, tasks: Sequence[str], measure: Measure) -> SeedMean | None:
        """How much worse the emulator tuned is than plugged in."""
        return self._mean(gap_of, tasks, measure)

    def fall(self, tasks: Sequence[str], measure: Measure) -> SeedMean | None:
        """How much worse zero-shot is than fine-tuned: what there is to keep."""
        return self._mean(fall_of, tasks, measure)

    def nothing_gained(self, tasks: Sequence[str], measure: Measure) -> Estimate | None:
        """What fine-tuning gains with a seed where that is not above its error; None: there is no such seed."""
        falls = (fall_of(rows, tasks, measure) for rows in self._by_seed)
        return next((fall for fall in falls if fall and not fall.above_error), None)

    def gain(self, tasks: Sequence[str], measure: Measure) -> SeedMean | None:
        """The share of what fine-tuning gains that plugged in keeps.

        None where with one seed there is nothing to keep: the others would flatter.
        """
        return None if self.nothing_gained(tasks, measure) else self._mean(gain_of, tasks, measure)

    def _mean(self, of: _Of, tasks: Sequence[str], measure: Measure) -> SeedMean | None:
        return over_seeds([found for rows in self._by_seed if (found := of(rows, tasks, measure))])

    @property
    def _by_seed(self) -> list[Rows]:
        """The five rows of each seed, so far as they are there."""
        seeds = dict.fromkeys(run.seed for run in self.runs)
        return [_rows(run for run in (*self.ends, *self.runs) if run.seed == seed) for seed in seeds]


def _rows(runs: Iterable[Run]) -> Rows:
    rows: dict[RowKey, dict[str, Score]] = {}
    for run in runs:
        for row, score in run.scores.items():
            rows.setdefault(row, {})[run.task] = score
    return rows


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The groups in the order of their first runs, which tables, figures and pages keep."""
    ends = tuple(run for run in runs if run.zero_shot or run.fine_tuned)
    apart: dict[tuple[str, float | None], list[Run]] = {}
    for run in runs:
        apart.setdefault((run.method, run.keep), []).append(run)
    return [Group(method, keep, tuple(some), ends) for (method, keep), some in apart.items()]
