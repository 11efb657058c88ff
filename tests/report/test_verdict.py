"""What the five rows are said to mean."""

from __future__ import annotations

import math

import pytest

from offsite.report.verdict import judge
from offsite.results.schema import Results
from tests.report.pages import SCORES


@pytest.fixture
def verdict(results):
    """The verdict after changing scores: `verdict(plugged_in={"nll": 5.0})`."""

    def judged(**changes):
        for row, change in changes.items():
            results["rows"][row]["arc_easy"] |= change
        read = Results.read(results)
        return judge(read, read.tasks)

    return judged


def test_share_and_gap_are_those_of_the_numbers(verdict):
    said = verdict()
    assert said.gain.value == pytest.approx((4.51 - 3.31) / (4.51 - 2.52))
    assert said.gap_acc.value == pytest.approx(5.3)
    assert said.gap_acc.stderr == pytest.approx(math.hypot(3, 3))
    assert said.gap_nll.value == pytest.approx(0.69)
    assert "reaches 60% of what fine-tuning gains" in said.headline
    assert "from 4.51 at zero-shot to 3.31 plugged in" in said.support
    assert said.size.startswith("The gap in accuracy is 1.2 times its standard error")


def test_the_error_of_the_share_is_that_of_resampling(verdict):
    import numpy as np

    share = verdict().gain
    draw = np.random.default_rng(0).normal
    zero, tuned, plugged = (
        draw(SCORES[row][1], 0.12, 100_000) for row in ("zero_shot", "fine_tuned", "plugged_in")
    )
    assert share.stderr == pytest.approx(((zero - plugged) / (zero - tuned)).std(), rel=0.03)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fine_tuned": {"nll": 4.6}}, "Fine-tuning gains nothing here"),
        ({"fine_tuned": {"nll": 4.4}}, "Fine-tuning gains less than its standard error"),
        ({"plugged_in": {"nll": 4.45}}, "the adapter changes less than its standard error"),
        ({"plugged_in": {"nll": 5.0}}, "less likely than before"),
        ({"plugged_in": {"nll": 2.4}}, "reaches all that fine-tuning gains"),
        ({"plugged_in": {"nll": None}}, "was not recorded in every row"),
        ({"plugged_in": {"nll": math.nan}}, "was not recorded in every row"),
    ],
)
def test_headline(verdict, changes, says):
    assert says in verdict(**changes).headline


@pytest.mark.parametrize(
    ("emulator", "says"),
    [
        ({}, "does not replace the full model"),
        ({"acc": 0.543, "nll": 3.31}, "or the test is too small to tell"),
        ({"acc": 0.53, "nll": 3.35}, "or the test is too small to tell"),
        ({"acc": 0.7, "nll": 2.0}, "does better than the full model"),
        ({"acc": 0.7}, "opposite directions"),
        ({"acc_stderr": None, "nll_stderr": None}, "cannot be told whether that is chance"),
        ({"n": 1, "acc_stderr": 0.0, "nll_stderr": 0.0}, "cannot be told whether that is chance"),
    ],
)
def test_meaning_of_the_gap(verdict, emulator, says):
    assert says in verdict(emulator_tuned=emulator).meaning


def test_several_tasks_are_judged_by_their_mean(results):
    for row in results["rows"].values():
        row["sciq"] = row["arc_easy"] | {"acc": 0.5, "nll": 3.0}
    read = Results.read(results)
    one, both = judge(read, ["arc_easy"]), judge(read, ["arc_easy", "sciq"])
    assert both.gap_acc.value == pytest.approx(one.gap_acc.value / 2)
    assert both.gap_acc.stderr == pytest.approx(one.gap_acc.stderr / math.sqrt(2))
    assert both.gain.value == pytest.approx(one.gain.value)
