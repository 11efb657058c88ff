"""Choice nll: guessing is worth ln of the choices, one temperature is fitted, on the other half only."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from offsite.results.choices import choice_nlls, picks, temperature
from tests.results.rows import made


def logits(questions, choices, t, seed=0):
    """Of a model that is right as often as its softmax at temperature `t` says."""
    rng = random.Random(seed)
    sums, right = [], []
    for _ in range(questions):
        one = [rng.gauss(0, 1) for _ in range(choices)]
        right.append(rng.choices(range(choices), [math.exp(each) for each in one])[0])
        sums.append(tuple(t * each for each in one))
    return tuple(sums), tuple(right)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_scores_that_say_nothing_are_worth_as_much_as_guessing(count):
    rng = random.Random(1)
    blind = tuple(tuple(rng.gauss(0, 20) for _ in range(count)) for _ in range(400))
    found = fmean(choice_nlls(blind, tuple(rng.randrange(count) for _ in blind)))
    assert found == pytest.approx(math.log(count), abs=0.02)
    equal = choice_nlls(((-3.0,) * count,) * 4, (0,) * 4)
    assert equal == pytest.approx([math.log(count)] * 4)


@pytest.mark.parametrize("t", [0.5, 1.0, 7.0, 60.0])
def test_the_temperature_of_scaled_logits_is_found(t):
    sums, right = logits(600, 4, t)
    assert temperature(list(zip(sums, right, strict=True))) == pytest.approx(t, rel=0.25)


@pytest.mark.parametrize("scale", [0.5, 3.0, 40.0])
def test_how_sure_the_sums_are_does_not_count(scale):
    sums, right = logits(200, 4, 2.0)
    scaled = tuple(tuple(scale * each for each in one) for one in sums)
    assert choice_nlls(scaled, right) == pytest.approx(choice_nlls(sums, right), abs=1e-4)


def test_raw_sums_would_be_far_too_sure_of_themselves():
    [score] = made([1.0])
    raw = fmean(
        math.log(sum(math.exp(each - one[place]) for each in one))
        for one, place in zip(score.choices, score.right, strict=True)
    )
    assert fmean(choice_nlls(score.choices, score.right)) < 1.3 < raw / 2


def test_no_temperature_is_better_on_the_half_that_it_is_fitted_on():
    sums, right = logits(60, 3, 5.0)
    asked = list(zip(sums, right, strict=True))
    best = temperature(asked)

    def nll(t):
        return fmean(math.log(sum(math.exp((each - one[place]) / t) for each in one)) for one, place in asked)

    assert all(nll(best) <= nll(best * factor) for factor in (0.8, 0.97, 1.03, 1.25))


def test_a_question_is_scored_by_what_was_fitted_on_the_other_half():
    sums, right = logits(40, 3, 5.0)
    before = choice_nlls(sums, right)
    other = tuple((9.0, -9.0, 1.0) if place == 0 else one for place, one in enumerate(sums))
    after = choice_nlls(other, right)
    assert after[2::2] == before[2::2], "of its own half"
    assert all(a != b for a, b in zip(after[1::2], before[1::2], strict=True))


def test_what_points_away_from_the_right_choice_is_no_better_than_guessing():
    sums, right = logits(200, 3, 1.0)
    wrong = tuple(tuple(-each for each in one) for one in sums)
    assert fmean(choice_nlls(wrong, right)) == pytest.approx(math.log(3), abs=1e-2)


def test_questions_may_have_different_numbers_of_choices():
    assert choice_nlls(((0.0, 0.0), (1.0, 1.0, 1.0)), (0, 2)) == pytest.approx([math.log(2), math.log(3)])


def test_without_another_half_or_a_finite_sum_there_is_none():
    assert choice_nlls(((-1.0, -2.0),), (0,)) is None
    assert choice_nlls((), ()) is None
    assert choice_nlls(((-1.0, -math.inf), (0.0, -1.0)), (0, 1)) is None


def test_of_equal_choices_the_first_is_picked_as_in_the_accuracy():
    assert picks(((1.0, 1.0), (1.0, 1.0), (0.0, 2.0)), (0, 1, 1)) == (1.0, 0.0, 1.0)
