"""Loss and gap: signs, units, errors paired over questions; no gain where there is nothing to keep."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from offsite.results.choices import choice_nlls
from offsite.results.measures import (
    ACCURACY,
    CHOICE,
    NLL,
    fall_of,
    gain_of,
    gap_of,
    judged_by,
    loss_of,
    measures,
    nothing_to_keep,
    over_tasks,
)  # fmt: skip
from offsite.results.schema import Score
from offsite.results.statistics import Estimate
from tests.results.rows import by_nll, five, made

ZERO, TUNED = (4.0, 0.1), (2.0, 0.1)


def nlls(rows, row):
    return choice_nlls(rows[row]["t"].choices, rows[row]["t"].right)


@pytest.mark.parametrize(
    ("of", "worse", "than"),
    [
        (loss_of, "plugged_in", "fine_tuned"),
        (gap_of, "emulator_tuned", "plugged_in"),
        (fall_of, "zero_shot", "fine_tuned"),
    ],
)
def test_each_is_how_much_worse_one_row_is_question_by_question(of, worse, than):
    rows = five()
    found = of(rows, ["t"], CHOICE)
    apart = [a - b for a, b in zip(nlls(rows, worse), nlls(rows, than), strict=True)]
    assert found.value == pytest.approx(fmean(apart))
    assert found.stderr == pytest.approx(stdev(apart) / math.sqrt(200))
    points = of(rows, ["t"], ACCURACY)
    assert points.value == pytest.approx(100 * (rows[than]["t"].acc - rows[worse]["t"].acc))
    assert found.value > 0 < points.value


@pytest.mark.parametrize("measure", [CHOICE, ACCURACY])
@pytest.mark.parametrize("of", [loss_of, gap_of, gain_of])
def test_the_paired_error_is_the_smaller_one(measure, of):
    rows = five()
    paired = of(rows, ["t"], measure)
    other = {row: {"t": replace(score["t"], right=None, choices=None)} for row, score in rows.items()}
    apart = replace(measure, each=lambda score: None)
    assert paired.stderr < 0.7 * of(rows, ["t"], apart).stderr
    assert of(rows, ["t"], apart).value == pytest.approx(paired.value)
    if measure is ACCURACY:
        assert of(other, ["t"], measure) == of(rows, ["t"], apart), "of old results, that keep no choices"


def test_the_paired_errors_are_those_of_asking_other_questions():
    draws = [five(seed=seed, questions=40) for seed in range(24)]
    for of in (loss_of, gap_of, gain_of):
        found = [of(rows, ["t"], CHOICE) for rows in draws]
        assert fmean(each.stderr for each in found) == pytest.approx(
            stdev(each.value for each in found), rel=0.5
        )


def test_rows_of_other_questions_are_not_paired():
    one, [other] = made([1.0, 0.5]), made([0.5], seed=3)
    assert CHOICE.sum([(1, one[0]), (-1, one[1])]).stderr < CHOICE.sum([(1, one[0]), (-1, other)]).stderr


def test_the_mean_over_tasks_takes_them_as_independent():
    rows, other = five(), five(seed=5, task="u")
    both = {row: {**rows[row], **other[row]} for row in rows}
    one, two = loss_of(rows, ["t"], CHOICE), loss_of(other, ["u"], CHOICE)
    found = loss_of(both, ["t", "u"], CHOICE)
    assert found.value == pytest.approx((one.value + two.value) / 2)
    assert found.stderr == pytest.approx(math.hypot(one.stderr, two.stderr) / 2)
    del both["plugged_in"]["u"]
    assert loss_of(both, ["t", "u"], CHOICE) is None


def test_the_gain_is_the_share_that_is_kept():
    rows = five()
    fall, loss, gain = (of(rows, ["t"], CHOICE) for of in (fall_of, loss_of, gain_of))
    assert gain.value == pytest.approx(1 - loss.value / fall.value)
    assert 0.5 < gain.value < 1


def test_the_gain_is_unknown_where_fine_tuning_gains_less_than_its_error():
    def gain(zero, tuned, plugged):
        return gain_of(by_nll(zero, tuned, plugged), ["t"], NLL)

    assert gain(ZERO, TUNED, (2.5, 0.1)).value == pytest.approx(0.75)
    assert gain(ZERO, (3.9, 0.1), ZERO) is None
    assert gain(TUNED, ZERO, ZERO) is None
    assert gain(ZERO, (2.0, None), (2.5, 0.1)) == Estimate(0.75, None)


def test_fine_tuning_that_learns_nothing_of_which_choice_is_right_is_said_to():
    rows = five(tuned=0.0, plugged=0.0)
    for row, nll in (("zero_shot", 5.9), ("fine_tuned", 3.5), ("plugged_in", 3.6)):
        rows[row]["t"] = replace(rows[row]["t"], nll=nll)
    assert gain_of(rows, ["t"], NLL).value > 0.9, "what an answer looks like is learnt"
    assert gain_of(rows, ["t"], CHOICE) is None
    said = nothing_to_keep(fall_of(rows, ["t"], CHOICE), CHOICE)
    assert said.startswith("Fine-tuning is no better than zero-shot beyond its standard error (")
    assert said.endswith(" nats), so there is nothing to keep.")


def test_tasks_with_choices_are_judged_by_them_and_others_by_the_answer():
    rows = five()
    rows = {row: {**tasks, "text": Score(nll=2.0, n=4)} for row, tasks in rows.items()}
    assert judged_by(rows.values(), ["t", "text"]) == (CHOICE, ["t"])
    assert judged_by(rows.values(), ["text"]) == (NLL, ["text"])
    assert measures([rows["zero_shot"]["t"]]) == [ACCURACY, CHOICE, NLL]
    [single] = made([1.0], questions=1)
    assert judged_by([{"t": single}], ["t"]) == (NLL, ["t"]), "a single question has no other half"


def test_what_a_row_lacks_is_nowhere():
    rows = five()
    assert over_tasks(rows, "plugged_in", ["other"], CHOICE) is None
    rows["plugged_in"]["t"] = replace(rows["plugged_in"]["t"], choices=None, right=None)
    assert loss_of(rows, ["t"], CHOICE) is None
    assert judged_by(rows.values(), ["t"]) == (CHOICE, ["t"]), "never by another measure than its neighbours"


@pytest.mark.parametrize(
    "wrong", [{"choices": ((1.0, 2.0),)}, {"choices": ((1.0, 2.0),), "right": (2,)}, {"right": (0,)}]
)
def test_choices_and_right_ones_belong_together(wrong):
    with pytest.raises(ValueError, match="right"):
        Score(**wrong)
