"""Means and their errors."""

from __future__ import annotations

import pytest

from offsite.results.statistics import Estimate, mean, over_seeds


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
