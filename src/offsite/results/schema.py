"""The shape of one comparison, read from `results.json` or straight from `compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from offsite.errors import UserError
from offsite.results.choices import Logliks

RowKey = Literal["zero_shot", "fine_tuned", "emulator_zero_shot", "emulator_tuned", "plugged_in"]


@dataclass(frozen=True)
class RowLabel:
    """One of the five rows: its name, colour and meaning, wherever it appears."""

    key: RowKey
    name: str
    colour: str
    meaning: str


# Each colour keeps 3:1 contrast on the light and on the dark ground alike, so a figure needs one set only.
ROWS = (
    RowLabel("zero_shot", "Zero-shot", "#858b94", "The model as it is, before any tuning."),
    RowLabel(
        "fine_tuned", "Fine-tuned", "#3f7fc8", "The adapter tuned inside the full model: the upper bound."
    ),
    RowLabel(
        "emulator_zero_shot", "Emulator zero-shot", "#b08449", "The emulator as the data owner receives it."
    ),
    RowLabel(
        "emulator_tuned",
        "Emulator tuned",
        "#d0672b",
        "The emulator with its adapter tuned on private data.",
    ),
    RowLabel(
        "plugged_in", "Plugged in", "#1d9475", "That adapter in the full model: what the model owner gains."
    ),
)


def _finite(value: object) -> object:
    """A diverged run writes NaN or infinity; on the page that is a number that is not there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A number that may not be there."""
_Share = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_finite)]
_Positive = Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(_finite)]


@validated(frozen=True)
class Score:
    """How well a model did on a task: measured by `evaluate`, read back from a file, drawn on a page.

    A `_stderr` is the standard error of the mean above, 0 if n is 1. None: not measured, or not finite.
    """

    acc: _Share = None
    """Share of questions, 0 to 1, whose likeliest answer is right; in an exact-match task, of those whose
    greedy continuation is one of the listed answers; None where texts are predicted, as are the next three."""
    acc_stderr: _Positive = None
    acc_norm: _Share = None
    """The same by log-likelihood per character of the answer; in an exact-match task, `acc` again."""
    acc_norm_stderr: _Positive = None
    nll: Number = None
    """Negative log-likelihood of the right answer in nats per token: the mean over all tokens of all right
    answers; in an exact-match task, of the answers that the questions mark; of all tokens of texts, whose
    perplexity is its exponential."""
    nll_stderr: _Positive = None
    n: int | None = None
    """Questions answered, or texts predicted."""
    choices: Logliks | None = None
    """Of each multiple-choice question, the summed log-likelihood of each choice, in nats to 1e-4. Rows are
    compared by them question by question; None of other tasks, where one is not finite, and in old results."""
    right: tuple[int, ...] | None = None
    """Of each of those questions, the place of the right choice."""

    def __post_init__(self) -> None:
        if (self.choices is None) != (self.right is None) or len(self.choices or ()) != len(self.right or ()):
            raise ValueError("choices and right are of the same questions")
        if any(
            not 0 <= place < len(one) for one, place in zip(self.choices or (), self.right or (), strict=True)
        ):
            raise ValueError("right names one of the choices")


class LossPoint(BaseModel):
    """The losses (nats per answer token) after so many steps; None where not taken, NaN where it diverged."""

    step: int
    loss: float | None = None
    heldout: float | None = None


class Results(BaseModel):
    """One comparison; what is None was not recorded and stays off the page."""

    rows: dict[RowKey, dict[str, Score]]
    keep: Annotated[float, Field(ge=0, le=1)]
    method: str
    split: dict[str, int] | None = None
    curves: dict[RowKey, list[LossPoint]] | None = None
    model: str | None = None
    train: str | None = None
    sources: dict[str, str] | None = None
    notes: list[str] | None = None
    tuning: dict[str, object] | None = None
    limit: int | None = None
    seconds: dict[str, float] | None = None
    call: str | list[str] | None = None
    versions: dict[str, str] | None = None
    seed: int | None = None
    date: str | None = None
    machine: str | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks in the order in which they were scored."""
        return list(self.rows["zero_shot"])

    @classmethod
    def read(cls, results: Mapping[str, object]) -> Results:
        """Check `results`; a UserError names the first place that does not fit."""
        try:
            read = cls.model_validate(dict(results))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _unfit(f"at {where!r}, {first['msg'][0].lower()}{first['msg'][1:]}") from error
        read._check_rows()
        return read

    def _check_rows(self) -> None:
        for row in ROWS:
            if row.key not in self.rows:
                raise _unfit(f"the row {row.key!r} is missing")
            if not self.tasks or set(self.rows[row.key]) != set(self.tasks):
                raise _unfit(
                    f"the row {row.key!r} holds the tasks {sorted(self.rows[row.key])}, {ROWS[0].key!r} "
                    f"{sorted(self.tasks)}"
                )


def _unfit(why: str) -> UserError:
    return UserError(f"These results cannot be reported: {why}; let `offsite compare` write them anew.")
