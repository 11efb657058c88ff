"""What the five rows are said to mean."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from offsite.report.verdict import judge
from offsite.results.measures import CHOICE, fall_of, loss_of
from offsite.results.schema import Results
from tests.report.pages import SCORES
from tests.results.rows import five


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
    assert said.gap_points.value == pytest.approx(5.3)
    assert said.gap_points.stderr == pytest.approx(math.hypot(3, 3))
    assert said.gap.value == pytest.approx(0.69)
    assert (said.loss.value, said.loss_points.value) == (pytest.approx(0.79), pytest.approx(6.7))
    assert said.headline == (
        "Plugged in, the adapter loses 0.79 ± 0.17 of the 1.99 nats that fine-tuning gains; the emulator "
        "alone is 0.69 ± 0.17 worse."
    )
    assert "from 4.51 at zero-shot to 3.31 plugged in" in said.support
    assert said.size.endswith("in accuracy is 1.2 times its standard error.")
    assert said.lines[:2] == [
        "Loss 0.79 ± 0.17 nats of answer nll, 6.7 ± 4.2 points of accuracy",
        "Gap 0.69 ± 0.17 nats of answer nll, 5.3 ± 4.2 points of accuracy",
    ]


def test_rows_with_choices_are_read_by_them_question_by_question(results):
    results["rows"] = {row: {"arc_easy": asdict(tasks["t"])} for row, tasks in five().items()}
    said = judge(Results.read(results), ["arc_easy"])
    expected = loss_of(five(), ["t"], CHOICE)
    assert (said.by, said.loss) == ("choice nll", expected)
    assert f"loses {expected.value:.3f} ± {expected.stderr:.3f} of the" in said.headline
    assert said.support.startswith("The choice nll falls from 1.")
    assert said.gain.value == pytest.approx(1 - expected.value / fall_of(five(), ["t"], CHOICE).value)


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
        (
            {"fine_tuned": {"nll": 4.6}},
            "beyond its standard error (−0.09 ± 0.17 nats), so there is nothing to keep",
        ),
        (
            {"fine_tuned": {"nll": 4.4}},
            "Fine-tuning is no better than zero-shot beyond its standard error (0.11 ±",
        ),
        ({"plugged_in": {"nll": 4.45}}, "loses 1.93 ± 0.17 of the 1.99 nats"),
        ({"plugged_in": {"nll": 5.0}}, "loses all of the 1.99 nats that fine-tuning gains: 2.48 ± 0.17"),
        ({"plugged_in": {"nll": 2.4}}, "loses nothing of the 1.99 nats that fine-tuning gains"),
        ({"emulator_tuned": {"nll": 3.0}}, "the emulator alone is 0.31 ± 0.17 better"),
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
    assert both.gap_points.value == pytest.approx(one.gap_points.value / 2)
    assert both.gap_points.stderr == pytest.approx(one.gap_points.stderr / math.sqrt(2))
    assert both.gain.value == pytest.approx(one.gain.value)
