"""Means, their errors, and the gain."""

from __future__ import annotations

import math

import pytest

from offsite.results.statistics import Estimate, gain, gain_over_seeds, mean, over_seeds

ZERO, TUNED = Estimate(4.0, 0.1), Estimate(2.0, 0.1)


def test_a_mean_needs_every_value_and_its_error_every_error():
    assert mean([Estimate(1.0, 0.3), Estimate(3.0, 0.4)]) == Estimate(2.0, 0.25)
    assert mean([Estimate(1.0, 0.3), Estimate(3.0, None)]) == Estimate(2.0, None)
    assert mean([Estimate(1.0, 0.3), None]) is None
    assert mean([]) is None


def test_an_error_over_questions_is_marked_apart_from_one_over_seeds():
    apart = over_seeds([Estimate(1.0, 0.5), Estimate(3.0, 0.5)])
    assert (apart.value, apart.stderr, apart.seeds, apart.mark) == (2.0, pytest.approx(1.0), 2, "")
    for alike in ([Estimate(1.0, 0.5)], [Estimate(1.0, 0.5), Estimate(1.0, 0.7)]):
        found = over_seeds(alike)
        assert (found.value, found.stderr, found.seeds, found.mark) == (1.0, 0.5, len(alike), "†")
    assert over_seeds([]) is None


def test_the_gain_is_unknown_where_fine_tuning_gains_less_than_its_error():
    assert gain(ZERO, TUNED, Estimate(2.5, 0.1)).value == pytest.approx(0.75)
    assert gain(ZERO, Estimate(3.9, 0.1), ZERO) is None
    assert gain(TUNED, ZERO, ZERO) is None
    assert gain(ZERO, Estimate(2.0, None), Estimate(2.5, 0.1)) == Estimate(0.75, None)


def test_the_gain_over_seeds_leaves_out_what_failed_and_nothing_else():
    first, second = (ZERO, TUNED, Estimate(3.0, 0.1)), (ZERO, TUNED, Estimate(2.0, 0.1))
    both = gain_over_seeds([first, second])
    assert (both.value, both.seeds) == (pytest.approx(0.75), 2)
    assert both.stderr == pytest.approx(math.sqrt(0.125) / math.sqrt(2))
    assert gain_over_seeds([first, (ZERO, TUNED, None)]).seeds == 1
    assert gain_over_seeds([first, (ZERO, Estimate(3.95, 0.1), TUNED)]) is None, "not of some seeds only"
    assert gain_over_seeds([]) is None
