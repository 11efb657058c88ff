"""Means over seeds: each seed is held against the model's own rows with that seed."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest

from offsite.results.measures import CHOICE, NLL, loss_of
from offsite.results.runs import Run, grouped
from tests.results.rows import by_nll, five

ZERO, TUNED = (4.0, 0.1), (2.0, 0.1)


def run_of(rows, seed, method="", keep=None):
    own = {"zero_shot", "fine_tuned"} if not method else {"emulator_zero_shot", "emulator_tuned", "plugged_in"}
    scores = {row: tasks["t"] for row, tasks in rows.items() if row in own}
    return Run(method=method, task="t", seed=seed, keep=keep, **scores)


def runs_of(*seeds):
    return [run_of(rows, seed, *which) for seed, rows in enumerate(seeds) for which in ((), ("gradot", 0.7))]


def test_the_loss_is_that_of_each_seed_and_then_the_mean():
    seeds = [five(seed=seed) for seed in (1, 2, 3)]
    itself, method = grouped(runs_of(*seeds))
    losses = [loss_of(rows, ["t"], CHOICE).value for rows in seeds]
    found = method.loss(["t"], CHOICE)
    assert (found.value, found.seeds) == (pytest.approx(fmean(losses)), 3)
    assert found.stderr == pytest.approx(stdev(losses) / math.sqrt(3))
    assert (itself.method, itself.loss(["t"], CHOICE)) == ("", None)
    assert method.gap(["t"], CHOICE).value > 0
    one = grouped(runs_of(seeds[0]))[1].loss(["t"], CHOICE)
    assert (one.stderr, one.over_questions) == (loss_of(seeds[0], ["t"], CHOICE).stderr, True)


def test_the_gain_over_seeds_leaves_out_what_failed_and_nothing_else():
    def gain(*seeds):
        return grouped(runs_of(*(by_nll(*each) for each in seeds)))[1].gain(["t"], NLL)

    first, second = (ZERO, TUNED, (3.0, 0.1)), (ZERO, TUNED, (2.0, 0.1))
    both = gain(first, second)
    assert (both.value, both.seeds) == (pytest.approx(0.75), 2)
    assert both.stderr == pytest.approx(math.sqrt(0.125) / math.sqrt(2))
    assert gain(first, (ZERO, TUNED, None)).seeds == 1
    assert gain(first, (ZERO, (3.95, 0.1), TUNED)) is None, "not of some seeds only"


def test_groups_stand_in_the_order_of_their_first_runs():
    rows = five()
    runs = [run_of(rows, 0), run_of(rows, 0, "uniform", 0.7), run_of(rows, 0, "gradot", 0.7)]
    runs += [run_of(rows, 1, "gradot", 0.7), run_of(rows, 0, "gradot", 0.8)]
    found = [(group.method, group.keep, group.seeds) for group in grouped(runs)]
    assert found == [("", None, 1), ("uniform", 0.7, 1), ("gradot", 0.7, 2), ("gradot", 0.8, 1)]
